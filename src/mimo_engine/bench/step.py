"""What a step costs beside the forward pass: planning, inputs, sampling, stop rules, text.

The engine decodes a steady batch with the real model; the time inside the model (layers and head)
is measured apart and taken off. What is left is what every token pays whatever the model's size.
"""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from time import perf_counter_ns

import torch

from mimo_engine.bench.record import append_result
from mimo_engine.chat.detokenize import OutputText
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.engine.executor import Executor
from mimo_engine.llm import LLM
from mimo_engine.messages import NewRequest
from mimo_engine.model.batch import ForwardBatch
from mimo_engine.model.text import TextModel

__all__ = ["main", "measure"]

_WARM_UP_STEPS = 10


class _TimedModel:
    """The model, with the time spent in it since it was last asked."""

    def __init__(self, model: TextModel) -> None:
        self._model = model
        self.spent_ns = 0

    def __call__(self, batch: ForwardBatch) -> torch.Tensor:
        start = perf_counter_ns()
        hidden = self._model(batch)
        self.spent_ns += perf_counter_ns() - start
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        start = perf_counter_ns()
        logits = self._model.logits(hidden)
        self.spent_ns += perf_counter_ns() - start
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Medians over `num_steps` steps of `batch` decoding requests, microseconds."""

    batch: int
    sampling: str
    num_steps: int
    step_us: float
    model_us: float
    rest_us: float


def measure(llm: LLM, batch: int, params: SamplingParams, *, num_steps: int) -> Measurement:
    """Decode `batch` requests of 32 prompt tokens for `num_steps` steps."""
    core = llm.core
    assert isinstance(core.executor, Executor)
    runner = core.executor.worker.runner
    assert runner is not None
    timed = _TimedModel(runner.model)
    runner.model = timed  # type: ignore[assignment]
    texts: dict[str, OutputText] = {}
    for index in range(batch):
        request_id = f"bench-{index}"
        prompt = [(7 * index + 3 * j) % 256 for j in range(32)]
        texts[request_id] = OutputText(llm.tokenizer, params)
        core.add(NewRequest(request_id=request_id, prompt_token_ids=prompt, params=params))
    step_us: list[float] = []
    model_us: list[float] = []
    while len(step_us) < num_steps + _WARM_UP_STEPS:
        timed.spent_ns = 0
        start = perf_counter_ns()
        outputs = core.step()
        for output in outputs:
            texts[output.request_id].add(output)
        if len(outputs) == batch:
            step_us.append((perf_counter_ns() - start) / 1e3)
            model_us.append(timed.spent_ns / 1e3)
    for request_id in texts:
        core.abort(request_id)
    runner.model = timed._model
    rest = [step - model for step, model in zip(step_us, model_us, strict=True)]
    return Measurement(
        batch=batch,
        sampling="greedy" if params.is_greedy else "top_p 0.95",
        num_steps=num_steps,
        step_us=statistics.median(step_us[_WARM_UP_STEPS:]),
        model_us=statistics.median(model_us[_WARM_UP_STEPS:]),
        rest_us=statistics.median(rest[_WARM_UP_STEPS:]),
    )


def main(model: str) -> None:
    """Print the table and append one JSON line."""
    llm = LLM(model, device="cpu")
    greedy = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    drawn = SamplingParams(top_p=0.95, seed=1, max_tokens=None, ignore_eos=True)
    # Checked before it is timed: the same prompt twice, alone and after a prefix hit.
    [first], [second] = (llm.generate(list(range(200)), greedy_of(32)) for _ in range(2))
    assert first.token_ids == second.token_ids
    rows = [
        measure(llm, batch, params, num_steps=40)
        for batch in (1, 16, 64)
        for params in (greedy, drawn)
    ]
    print(
        f"{'batch':>5} {'sampling':>11} {'step us':>9} {'model us':>9} {'rest us':>8} {'rest':>6}"
    )
    for row in rows:
        share = row.rest_us / row.step_us
        print(
            f"{row.batch:>5} {row.sampling:>11} {row.step_us:>9.0f} {row.model_us:>9.0f} "
            f"{row.rest_us:>8.0f} {share:>6.1%}"
        )
    append_result("step", {"config": {"model": "random"}, "rows": [asdict(row) for row in rows]})


def greedy_of(max_tokens: int) -> SamplingParams:
    return SamplingParams(temperature=0.0, max_tokens=max_tokens, ignore_eos=True)
