"""What must hold for the repository as a whole, whatever the code does."""

import importlib
import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import mimo_engine

ROOT = Path(__file__).resolve().parents[2]


def run_python(code: str) -> str:
    """Standard output of `code` in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_file_is_over_500_lines_and_no_function_over_60() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "check_sizes.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def load_check_sizes() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_sizes", ROOT / "tools" / "check_sizes.py")
    assert spec is not None
    assert spec.loader is not None
    check_sizes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_sizes)
    return check_sizes


def test_the_size_check_sees_a_long_file_and_a_long_function(tmp_path: Path) -> None:
    check_sizes = load_check_sizes()
    source = tmp_path / "long.py"
    body = "    pass\n"
    source.write_text("def fits():\n" + body * 59 + "def long():\n" + body * 60 + "x = 0\n" * 380)
    assert list(check_sizes.oversized(source, "long.py")) == [
        "long.py: 501 lines, at most 500",
        "long.py:61: long has 61 lines, at most 60",
    ]


@pytest.mark.parametrize("decorator", ["triton.jit", "triton.jit(noinline=True)"])
def test_the_size_check_counts_the_body_of_a_kernel(tmp_path: Path, decorator: str) -> None:
    check_sizes = load_check_sizes()
    source = tmp_path / "kernels.py"
    signature = "(\n" + "    pointer,\n" * 20 + "):\n"
    kernel = f"@{decorator}\ndef {{}}{signature}" + "    pass\n" * 60
    source.write_text(kernel.format("fits") + kernel.format("is_long") + "    pass\n")
    complaints = list(check_sizes.oversized(source, "kernels.py"))
    assert complaints == ["kernels.py:85: is_long has 61 lines, at most 60"]
    source.write_text(f"def ordinary{signature}" + "    pass\n" * 60)
    assert len(list(check_sizes.oversized(source, "kernels.py"))) == 1


def test_the_first_version_in_the_changelog_is_the_packages() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    versions = re.findall(r"^## \[(\d[^\]]*)\]", changelog, flags=re.MULTILINE)
    assert versions[0] == mimo_engine.__version__


def test_every_public_name_can_be_loaded_and_is_listed_by_dir() -> None:
    assert dir(mimo_engine) == sorted(mimo_engine.__all__)
    for name in mimo_engine.__all__:
        assert getattr(mimo_engine, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Llama'"):
        mimo_engine.Llama  # noqa: B018


def test_the_public_exceptions_are_the_whole_tree() -> None:
    from_errors = importlib.import_module("mimo_engine.errors").__all__
    assert set(from_errors) <= set(mimo_engine.__all__)


def test_importing_the_package_imports_nothing_heavy() -> None:
    heavy = "torch", "fastapi", "zmq", "tokenizers", "huggingface_hub", "tyro"
    code = f"import sys, mimo_engine; print([n for n in {heavy!r} if n in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_the_command_of_the_package_exists() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["mimo-engine"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))
