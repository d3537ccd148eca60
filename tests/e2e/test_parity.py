"""Text equals transformers: logits at every position, and greedy text, through the whole engine."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from reference_model import (
    GEOMETRIES,
    export_again,
    greedy_agrees,
    make_reference,
    random_prompts,
    reference_logits,
)
from transformers import MiMoV2FlashForCausalLM

from mimo_engine import LLM, SamplingParams
from mimo_engine.checkpoint.export import ExportFormat
from mimo_engine.config.engine import CacheConfig, ModelSettings, SchedulerConfig
from mimo_engine.engine.executor import Executor, Pending
from mimo_engine.scheduler.plan import StepPlan

GREEDY = SamplingParams(temperature=0.0, max_tokens=64, ignore_eos=True)


@dataclass
class Reference:
    path: Path
    model: MiMoV2FlashForCausalLM


@pytest.fixture(scope="module", params=GEOMETRIES)
def reference(request, tmp_path_factory) -> Reference:
    path = tmp_path_factory.mktemp(request.param)
    return Reference(path, make_reference(path, request.param))


def load(path: Path, **cache) -> LLM:
    """Chunks of 96 tokens, so that a prompt of 300 is cut inside its window and inside a page."""
    return LLM(
        str(path),
        dtype="float32",
        device="cpu",
        scheduler=SchedulerConfig(max_num_batched_tokens=96, max_num_seqs=8),
        cache=CacheConfig(**cache),
    )


@dataclass
class RecordingExecutor(Executor):
    """Keeps the logits of every row that the engine computes, by position."""

    inner: Executor
    logits: dict[int, torch.Tensor] = field(default_factory=dict)

    def launch(self, plan: StepPlan) -> Pending:
        runner = self.inner.worker.runner
        assert runner is not None
        with torch.inference_mode():
            runner.inputs.apply(plan)
            hidden = runner.model(runner.inputs.batch(plan, runner.caches))
            rows = runner.model.logits(hidden)
        positions = [p for row in plan.rows for p in range(row.start, row.start + row.num_tokens)]
        self.logits.update(zip(positions, rows, strict=True))
        return self.inner.launch(plan)


def logits_of(llm: LLM, prompt: list[int], max_tokens: int = 16) -> tuple[torch.Tensor, list[int]]:
    """[positions, V] of a request that runs alone, and its tokens."""
    executor = RecordingExecutor(llm.core.executor)
    llm.core.executor = executor
    params = SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
    [output] = llm.generate(prompt, params)
    llm.core.executor = executor.inner
    tokens = [*prompt, *output.token_ids[:-1]]
    return torch.stack([executor.logits[p] for p in range(len(tokens))]), tokens


def assert_same_logits(got: torch.Tensor, expected: torch.Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_logits_equal_the_reference_at_every_position_past_the_window(reference):
    llm = load(reference.path)
    [prompt] = random_prompts([333], seed=1)
    got, tokens = logits_of(llm, prompt)
    expected = reference_logits(reference.model, tokens)
    # A reference whose logits are flat or whose text repeats one token would prove nothing.
    assert expected.abs().max() > 1
    assert len(set(tokens[333:])) > 4
    assert_same_logits(got, expected)


def test_greedy_text_equals_the_reference_alone_in_a_batch_and_with_a_prefix_hit(reference):
    prompts = random_prompts([300, 17, 345, 129, 5], seed=2)
    alone = [load(reference.path, prefix_caching=False).generate(p, GREEDY)[0] for p in prompts[:2]]
    llm = load(reference.path)
    batched = llm.generate(prompts, GREEDY)
    again = llm.generate(prompts, GREEDY)
    assert any(output.num_cached_tokens > 128 for output in again)
    outputs = [*alone, *batched, *again]
    # The reference is slow, and most of these are the same.
    texts = {(tuple(o.prompt_token_ids), tuple(o.token_ids)) for o in outputs}
    verdicts = [greedy_agrees(reference.model, list(p), list(t)) for p, t in texts]
    assert set(verdicts) <= {"same", "tie"}
    assert verdicts.count("tie") <= 0.001 * len(verdicts)


@pytest.mark.parametrize("projection", ["fused", "split", "plain"])
def test_a_re_export_in_any_layout_has_the_same_logits(reference, tmp_path, projection):
    export_again(reference.path, tmp_path, ExportFormat(projection=projection, dtype=torch.float32))
    layout = "plain" if projection == "plain" else "auto"
    llm = LLM(
        str(tmp_path),
        dtype="float32",
        device="cpu",
        settings=ModelSettings(qkv_layout=layout),
    )
    [prompt] = random_prompts([310], seed=3)
    got, tokens = logits_of(llm, prompt, max_tokens=4)
    assert_same_logits(got, reference_logits(reference.model, tokens))


def test_one_visible_token_more_or_less_changes_the_logits(reference):
    """The window's edge: the reference's own count is right, its neighbours are not."""
    [prompt] = random_prompts([200], seed=4)
    window = reference.model.config.sliding_window
    expected = reference_logits(reference.model, prompt)
    for num_visible_tokens in (window - 1, window + 1):
        llm = LLM(
            str(reference.path),
            settings=ModelSettings(num_visible_tokens=num_visible_tokens),
        )
        got, _ = logits_of(llm, prompt, max_tokens=1)
        difference = (got - expected).abs().amax(dim=-1) / expected.abs().max()
        assert difference[: min(window, num_visible_tokens)].max() < 1e-5
        assert difference[window + 1 :].max() > 1e-4
