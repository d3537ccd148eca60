"""What scheduling costs: microseconds of `plan` + `apply` a step, in steady decoding.

The requests run at a long context with nothing in the queue, and the worker is a loop that returns
random tokens and is not counted. Pages of both groups fill up, are published and pass the window
at their usual rate, so the mean has their cost in it; p99 shows the steps in which many requests
cross a page together. The cache is checked at the end: a fast step that leaks is no result.
"""

from __future__ import annotations

import argparse
import gc
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns

from mimo_engine.bench.record import append_result
from mimo_engine.cache.groups import CacheLayout
from mimo_engine.cache.manager import CacheManager
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import NewRequest
from mimo_engine.scheduler.plan import RowResult, StepPlan, StepResult
from mimo_engine.scheduler.scheduler import Scheduler

__all__ = ["Measurement", "main", "measure"]

TARGET_US = {1: 100.0, 64: 500.0}
PAGE_SIZE = 16
WINDOW = 128
BUDGET = 2048
VOCAB_SIZE = 150_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Microseconds of one step, over `num_steps` steps of `batch` decoding requests."""

    batch: int
    prompt_len: int
    num_steps: int
    mean_us: float
    median_us: float
    p99_us: float
    max_us: float
    target_us: float | None


def measure(batch: int, *, prompt_len: int, num_steps: int) -> Measurement:
    """Prefill `batch` prompts of different lengths from `prompt_len` up, then time decode steps."""
    rng = random.Random(0)
    # The first request decodes while the others' prompts are computed,
    # half a budget a step or more.
    prefill_steps = batch * (prompt_len + PAGE_SIZE) // (BUDGET // 2) + 2
    scheduler, cache = _make(batch, prompt_len + PAGE_SIZE + prefill_steps + num_steps)
    for index in range(batch):
        # Lengths differ, as they do in life: pages are not all crossed in the same step.
        prompt = [rng.randrange(VOCAB_SIZE) for _ in range(prompt_len + index % PAGE_SIZE)]
        params = SamplingParams(max_tokens=None, ignore_eos=True)
        scheduler.add(NewRequest(request_id=str(index), prompt_token_ids=prompt, params=params))
    while (plan := scheduler.plan()) is not None:
        scheduler.apply(plan, _work(plan, rng))
        if len(plan.rows) == plan.num_tokens == batch:
            break

    nanoseconds: list[int] = []
    gc.collect()
    for _ in range(num_steps):
        start = perf_counter_ns()
        plan = scheduler.plan()
        planned = perf_counter_ns()
        assert plan is not None
        assert plan.num_tokens == batch
        result = _work(plan, rng)
        resumed = perf_counter_ns()
        outputs = scheduler.apply(plan, result)
        nanoseconds.append(perf_counter_ns() - resumed + planned - start)
        assert len(outputs) == batch
    for index in range(batch):
        scheduler.abort(str(index))
    cache.check()
    assert cache.full_usage().live == cache.sliding_usage().live == 0
    return _summary(nanoseconds, batch, prompt_len)


def _make(batch: int, max_model_len: int) -> tuple[Scheduler, CacheManager]:
    pages_per_request = -(-max_model_len // PAGE_SIZE)
    layout = CacheLayout(
        page_size=PAGE_SIZE,
        # One more a request: admission leaves each of them a page to grow.
        num_full_pages=batch * (pages_per_request + 1),
        num_sliding_pages=3 * batch * (WINDOW // PAGE_SIZE + 1) + BUDGET // PAGE_SIZE + 1,
        window=WINDOW,
    )
    cache = CacheManager(layout, prefix_caching=True)
    scheduler = Scheduler(
        SchedulerConfig(max_num_seqs=batch, max_num_batched_tokens=BUDGET),
        cache,
        max_model_len=max_model_len,
        eos_token_ids=(151645, 151643, 151672),
        seed=0,
    )
    return scheduler, cache


def _work(plan: StepPlan, rng: random.Random) -> StepResult:
    nothing = RowResult()
    return StepResult(
        rows=tuple(
            RowResult(token_ids=(rng.randrange(VOCAB_SIZE),)) if row.samples else nothing
            for row in plan.rows
        )
    )


def _summary(nanoseconds: Sequence[int], batch: int, prompt_len: int) -> Measurement:
    times_us = sorted(value / 1000 for value in nanoseconds)
    return Measurement(
        batch=batch,
        prompt_len=prompt_len,
        num_steps=len(times_us),
        mean_us=round(sum(times_us) / len(times_us), 2),
        median_us=round(times_us[len(times_us) // 2], 2),
        p99_us=round(times_us[len(times_us) * 99 // 100], 2),
        max_us=round(times_us[-1], 2),
        target_us=TARGET_US.get(batch),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table and append one line to benchmarks/results/scheduler.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompt-len", type=int, default=1024, help="tokens before decoding")
    parser.add_argument("--num-steps", type=int, default=2000, help="steps that are timed")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    results = [
        measure(batch, prompt_len=options.prompt_len, num_steps=options.num_steps)
        for batch in (1, 8, 64)
    ]
    print(f"plan + apply, decoding after {options.prompt_len} tokens, microseconds a step")
    print(f"{'batch':>6}{'mean':>9}{'median':>9}{'p99':>9}{'max':>9}{'target':>9}")
    for result in results:
        target = "" if result.target_us is None else f"{result.target_us:.0f}"
        print(
            f"{result.batch:>6}{result.mean_us:>9.1f}{result.median_us:>9.1f}"
            f"{result.p99_us:>9.1f}{result.max_us:>9.1f}{target:>9}"
        )
    if not options.no_record:
        config = {"page_size": PAGE_SIZE, "window": WINDOW, "prefix_caching": True}
        payload = {"config": config, "results": [asdict(result) for result in results]}
        path = append_result("scheduler", payload)
        print(f"appended to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
