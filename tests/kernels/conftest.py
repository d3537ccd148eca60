"""Triton's operators run here on a GPU, or in Triton's interpreter where there is none.

Without Triton, which there is for Linux alone, this folder is left out as a whole.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

if find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    import interpreter_repairs
    from kernel_place import ON_GPU

    if not ON_GPU:
        interpreter_repairs.apply()


@pytest.fixture
def device():
    return torch.device("cuda" if ON_GPU else "cpu")


@pytest.fixture
def poisoned(monkeypatch):
    """What is allocated without a value holds NaN, or the lowest integer: a result that was not
    written shows."""

    def poison(allocate):
        def allocated(*arguments, **named):
            tensor = allocate(*arguments, **named)
            if tensor.dtype is torch.float8_e4m3fn:
                tensor.view(torch.uint8).fill_(0x7F)
            elif tensor.is_floating_point():
                tensor.fill_(float("nan"))
            elif tensor.dtype is not torch.bool:
                tensor.fill_(torch.iinfo(tensor.dtype).min)
            return tensor

        return allocated

    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poison(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))
