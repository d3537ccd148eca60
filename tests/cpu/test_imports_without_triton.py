"""Nothing that serves on a CPU needs Triton, which is there for Linux alone."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, pkgutil, sys

sys.modules["triton"] = None  # importing it raises ImportError

for name in ("checkpoint", "engine", "layers", "llm", "model", "sampling", "worker"):
    package = importlib.import_module("mimo_engine." + name)
    for module in pkgutil.walk_packages(getattr(package, "__path__", []), package.__name__ + "."):
        importlib.import_module(module.name)

import torch
from mimo_engine.kernels.dispatch import REFERENCE, choose_kernels

cpu = torch.device("cpu")
assert choose_kernels("auto", cpu, torch.float32) is REFERENCE
assert choose_kernels("auto", cpu, torch.bfloat16) is REFERENCE
"""


def run(program):
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120
    )


def test_a_cpu_serves_without_triton():
    done = run(PROGRAM)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("module", ["triton_table", "cases"])
def test_the_program_would_notice_triton(module):
    assert "import of triton halted" in run(PROGRAM + f"import mimo_engine.kernels.{module}").stderr
