"""Configuration, messages, bookkeeping and text are importable, fast, where torch is not."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys

for name in ("torch", "triton", "safetensors", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError

package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
    importlib.import_module(module.name)
"""


PACKAGES = ("config", "messages", "cache", "scheduler", "chat", "grammar", "multimodal", "server")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_imports_without_torch(package):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, f"mimo_engine.{package}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_the_program_would_notice_torch():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM + "\nimport torch", "mimo_engine.errors"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "import of torch halted" in done.stderr
