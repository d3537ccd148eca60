"""The whole engine on CUDA gives the numbers of the CPU, in float32, format by format."""

from pathlib import Path

import pytest
import torch

from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, SchedulerConfig

PROMPTS = [list(range(3, 3 + n)) for n in (1, 17, 200)]


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


def logprobs(model_dir: Path, device: str) -> list[list[float]]:
    """Of every prompt token but the first, in chunks that cut the longest prompt."""
    llm = LLM(
        str(model_dir),
        dtype="float32",
        device=device,
        cache=CacheConfig(kv_cache_gib=0.25),
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64),
    )
    try:
        outputs = llm.generate(PROMPTS, SamplingParams(max_tokens=1, prompt_logprobs=0))
    finally:
        llm.close()
    return [
        [entry.logprob for entry in output.prompt_logprobs or [] if entry is not None]
        for output in outputs
    ]


@pytest.mark.parametrize("stored", ["bf16", "fp8", "mxfp4-experts"])
def test_prompt_logprobs_on_cuda_are_those_of_the_cpu(stored: str, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    assert main(["random-checkpoint", str(out), "--format", stored]) == 0
    for cuda, cpu in zip(logprobs(out, "cuda"), logprobs(out, "cpu"), strict=True):
        # The order of sums differs between devices: 1e-3 is about 20 times what that moves.
        assert cuda == pytest.approx(cpu, abs=1e-3)
