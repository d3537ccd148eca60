"""Images, sound and video through the whole engine on CUDA, against the CPU's numbers."""

from pathlib import Path

import pytest
import torch

from media_files import gradient, make_video, numbered_frame, tone
from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, SchedulerConfig

SCORED = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, prompt_logprobs=0)


@pytest.fixture(autouse=True)
def exact_matmuls() -> None:
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("omni") / "model"
    assert main(["random-checkpoint", str(out), "--format", "bf16"]) == 0
    return str(out)


def conversation() -> list[dict]:
    video = make_video([numbered_frame(i) for i in range(8)], fps=4, sound=tone(2.0))
    parts = [
        {"type": "image", "image": gradient(160, 128)},
        {"type": "video", "video": video},
        {"type": "audio", "audio": (tone(1.0)[0], 24_000)},
        {"type": "text", "text": "What are they?"},
    ]
    return [{"role": "user", "content": parts}]


def run(model: str, device: str, dtype: str) -> tuple[list[float], list[int]]:
    llm = LLM(
        model,
        dtype=dtype,
        device=device,
        cache=CacheConfig(kv_cache_gib=0.25),
        scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=48),
    )
    (output,) = llm.chat(conversation(), SCORED)
    llm.close()
    scores = [entry.logprob for entry in output.prompt_logprobs or [] if entry is not None]
    return scores, output.token_ids


def test_every_position_has_the_numbers_of_the_cpu_in_float32(omni: str) -> None:
    expected, tokens = run(omni, "cpu", "float32")
    scores, own = run(omni, "cuda", "float32")
    assert scores == pytest.approx(expected, abs=1e-3)
    assert own == tokens


def test_bf16_is_near(omni: str) -> None:
    expected, _ = run(omni, "cpu", "float32")
    scores, _ = run(omni, "cuda", "bfloat16")
    mean = sum(abs(a - b) for a, b in zip(expected, scores, strict=True)) / len(scores)
    # Codes of sound near a tie fall otherwise, and random weights pass on all of it.
    assert mean < 0.3


def test_features_for_a_gpu_are_bf16(omni: str) -> None:
    llm = LLM(omni, device="cuda", cache=CacheConfig(kv_cache_gib=0.25))
    assert llm.core.info().feature_dtype == "bfloat16"
    assert Path(omni).is_dir()
    llm.close()
