import json

import pytest

from mimo_engine.bench import record, scheduler
from mimo_engine.errors import ConfigError


def test_the_bench_measures_steady_decoding_and_leaves_no_page_in_use():
    measured = scheduler.measure(4, prompt_len=50, num_steps=40)
    assert (measured.batch, measured.num_steps) == (4, 40)
    assert 0 < measured.median_us <= measured.p99_us <= measured.max_us


def test_the_bench_prints_a_table(capsys):
    scheduler.main(["--prompt-len", "20", "--num-steps", "5", "--no-record"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == ["batch", "1", "8", "64"]


def test_a_result_is_one_json_line_that_names_no_directory(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    for value in (1, 2):
        path = record.append_result("example", {"config": {"batch": 4}, "value": value})
    assert path == tmp_path / "benchmarks" / "results" / "example.jsonl"
    text = path.read_text()
    assert str(tmp_path) not in text
    records = [json.loads(line) for line in text.splitlines()]
    assert [entry["value"] for entry in records] == [1, 2]
    assert records[0]["bench"] == "example"
    assert records[0]["commit"] == "unknown"
    assert "CPUs" in records[0]["hardware"]


def test_a_copy_of_a_checkout_says_which_commit_it_is_of(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / ".commit").write_text("fd017668694b\n")
    monkeypatch.chdir(tmp_path)
    assert json.loads(record.append_result("a", {}).read_text())["commit"] == "fd017668694b"
    record.append_line(tmp_path / "out" / "b.jsonl", "b", {"value": 3})
    line = json.loads((tmp_path / "out" / "b.jsonl").read_text())
    assert (line["bench"], line["commit"], line["value"]) == ("b", "fd017668694b", 3)


def test_recording_outside_a_checkout_is_an_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    with pytest.raises(ConfigError, match="checkout"):
        record.append_result("example", {})
