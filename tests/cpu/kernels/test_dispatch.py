"""Which operators run is chosen by what the GPU has."""

import logging
from types import SimpleNamespace

import pytest
import torch

from mimo_engine.errors import ConfigError
from mimo_engine.kernels import dispatch
from mimo_engine.kernels.dispatch import REFERENCE, choose_kernels

CUDA, BF16 = torch.device("cuda"), torch.bfloat16


@pytest.fixture
def gpu(monkeypatch):
    """Makes torch say that it sees one."""
    monkeypatch.setattr(dispatch, "_triton", lambda: "triton")

    def see(capability, shared_kib):
        own = SimpleNamespace(shared_memory_per_block_optin=shared_kib * 1024)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: own)

    return see


def test_a_gpu_with_all_that_kernels_need_runs_them(gpu):
    gpu((9, 0), 227)
    assert choose_kernels("auto", CUDA, BF16) == choose_kernels("triton", CUDA, BF16) == "triton"
    assert choose_kernels("reference", CUDA, BF16) is REFERENCE
    assert choose_kernels("auto", CUDA, torch.float32) is REFERENCE


@pytest.mark.parametrize(
    ("capability", "shared_kib", "lack"),
    [
        pytest.param((8, 0), 163, r"FP8 \(compute capability 8.9; here: 8.0\)", id="no FP8"),
        pytest.param((8, 9), 99, r"168 KiB of shared memory a block \(here: 99\)", id="little"),
        pytest.param((12, 0), 99, r"168 KiB of shared memory a block \(here: 99\)", id="newer"),
    ],
)
def test_a_gpu_that_lacks_something_runs_the_definitions_and_the_log_says_why(
    gpu, caplog, capability, shared_kib, lack
):
    gpu(capability, shared_kib)
    with caplog.at_level(logging.WARNING):
        assert choose_kernels("auto", CUDA, BF16) is REFERENCE
    (record,) = caplog.records
    with pytest.raises(ConfigError, match=f"{lack}: use --kernels reference"):
        choose_kernels("triton", CUDA, BF16)
    assert record.getMessage().startswith("plain PyTorch in place of Triton kernels, which need ")
