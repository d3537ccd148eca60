"""Rows of files, directories and the hub; every fault is one line that names its place."""

import json
import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet
import pytest
from eval_helpers import write_jsonl

from mimo_engine.errors import ConfigError
from mimo_engine.eval.rows import read_rows


def read(source, files=None):
    rows = read_rows(str(source), hub_files="*test*", files=files, columns=("a", "b"))
    return [dict(row.values) for row in rows]


def write_parquet(path, rows):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


def test_parquet_and_json_lines_give_the_same_rows(tmp_path):
    rows = [{"a": i, "b": {"c": ["ä", str(i)]}} for i in range(5)]
    write_parquet(tmp_path / "rows.parquet", rows)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert read(tmp_path / "rows.parquet") == read(tmp_path / "rows.jsonl") == rows


def test_of_parquet_only_the_columns_asked_for_are_read(tmp_path):
    write_parquet(tmp_path / "rows.parquet", [{"a": 1, "image_7": b"large"}])
    assert read(tmp_path / "rows.parquet") == [{"a": 1}]


def test_a_directory_is_read_in_the_order_of_its_names_and_as_far_as_the_pattern_goes(tmp_path):
    for name in ("z", "b", "c"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "rows.jsonl", [{"a": name}])
    (tmp_path / "README.md").write_text("not rows")
    assert [row["a"] for row in read(tmp_path)] == ["b", "c", "z"]
    assert [row["a"] for row in read(tmp_path, "c/*")] == ["c"]
    with pytest.raises(ConfigError, match=r"no \.jsonl or \.parquet file like x/\*: see --files"):
        read(tmp_path, "x/*")


@pytest.fixture
def clone(tmp_path):
    """Of a dataset with two forms of the same questions, as openai/gsm8k is."""
    for form in ("main", "socratic"):
        (tmp_path / form).mkdir()
        for split in ("test", "train"):
            path = tmp_path / form / f"{split}-00000-of-00001.parquet"
            write_parquet(path, [{"a": f"{form} {split}"}])
    return tmp_path


@pytest.mark.parametrize(
    ("folder", "files", "expected"),
    [
        pytest.param(".", None, ["main test"], id="what the hub's pattern names"),
        pytest.param("main", None, ["main test"], id="what its last part names"),
        pytest.param(".", "*/train-*", ["main train", "socratic train"], id="what is asked for"),
    ],
)
def test_of_a_clone_the_split_is_read_that_the_hub_would_give(clone, folder, files, expected):
    rows = read_rows(str(clone / folder), hub_files="main/test-*", files=files, columns=("a",))
    assert [row.values["a"] for row in rows] == expected


def test_a_directory_without_files_of_the_split_is_read_whole(clone):
    rows = read_rows(str(clone), hub_files="*/validation-*", files=None, columns=("a",))
    assert len(rows) == 4


def test_files_of_a_single_file_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}])
    with pytest.raises(ConfigError, match=r"is one file, of which --files cannot choose: leave it"):
        read(path, "rows*")


def test_a_row_says_where_it_stands(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", [{"a": 1}, {"a": 2}])
    rows = read_rows(path, hub_files="*", files=None, columns=("a",))
    assert [row.where for row in rows] == [f"{path}, row 1", f"{path}, row 2"]
    assert rows[0].directory == tmp_path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"a": 1}\n{', "row 2 is not JSON"),
        ('{"a": 1}\n\n', "row 2 is not JSON"),
        ("[" * 100_000, "row 1 is not JSON"),
        ("3\n", "row 1 must be a JSON object, not int"),
        ('{"a": "\xff"}', "is not UTF-8"),
    ],
)
def test_a_file_that_is_no_json_lines_is_refused(tmp_path, content, message):
    (tmp_path / "rows.jsonl").write_bytes(content.encode("latin-1"))
    with pytest.raises(ConfigError, match=rf"rows\.jsonl,? {message}"):
        read(tmp_path / "rows.jsonl")


def test_a_damaged_parquet_file_and_another_kind_of_file_are_refused(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(ConfigError, match=r"rows\.parquet cannot be read as parquet"):
        read(tmp_path / "rows.parquet")
    (tmp_path / "rows.csv").write_text("a,b")
    with pytest.raises(ConfigError, match=r"rows\.csv must be a \.jsonl or a \.parquet file"):
        read(tmp_path / "rows.csv")


@pytest.mark.parametrize("name", ["nobody/nothing", "no-such-file.jsonl", "./no/such/directory"])
def test_what_is_neither_here_nor_on_the_hub_is_one_line(name):
    with pytest.raises(ConfigError, match=f"^{name} is not a local file or directory, and no") as e:
        read(name)
    assert "\n" not in str(e.value)


def test_a_dataset_of_the_hub_is_read_by_its_files_of_the_split(tmp_path):
    repository = tmp_path / "datasets--org--set"
    snapshot = repository / "snapshots" / ("0" * 40)
    for split in ("train", "test"):
        (snapshot / "main").mkdir(parents=True, exist_ok=True)
        write_parquet(snapshot / "main" / f"{split}-00000-of-00001.parquet", [{"a": split}])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    code = (
        "from mimo_engine.eval.rows import read_rows\n"
        "rows = read_rows('org/set', hub_files='main/test-*', files=None, columns=('a',))\n"
        "print([dict(row.values) for row in rows])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"},
    )
    assert done.stdout == "[{'a': 'test'}]\n", done.stderr


def test_without_pyarrow_parquet_files_say_what_to_install(tmp_path):
    write_parquet(tmp_path / "rows.parquet", [{"a": 1}])
    code = (
        "import sys; sys.modules['pyarrow'] = None\n"
        "from mimo_engine.eval.rows import read_rows\n"
        f"read_rows({json.dumps(str(tmp_path / 'rows.parquet'))}, hub_files='*', files=None,"
        " columns=('a',))"
    )
    assert "ConfigError" in last_error(code)
    assert "pip install 'mimo-engine[eval]'" in last_error(code)


def test_without_httpx_the_command_says_what_to_install():
    code = (
        "import sys; sys.modules['httpx'] = None\n"
        "from mimo_engine.cli.main import main; sys.exit(main(['eval', 'demo']))"
    )
    assert last_error(code) == "error: eval needs httpx: pip install 'mimo-engine[eval]'"


def last_error(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    return done.stderr.splitlines()[-1]
