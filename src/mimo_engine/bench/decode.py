"""Decode steps of a model's first layers, through `LLM.generate`, beside the peers.

B random prompts go on by sampling at temperature 1; a step's time is the difference of two runs of
unequal length over the steps that they differ by, so host and scheduler are in it. Then the same
step is captured once more with a counter of the experts that its tokens chose, layer by layer: they
decide how many bytes a step touches, and the share of the limit is of those bytes.

    limit = bytes touched / measured copy rate of this card

A line is written for each size as soon as it is measured. The peers' numbers are those of perf.md
1: another machine, an H200, with the same slice of twelve FP8 layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from time import perf_counter
from typing import Any

import torch

from mimo_engine.bench.agreement import beyond, compare_slices
from mimo_engine.bench.ceilings import Ceilings, measure_ceilings
from mimo_engine.bench.record import append_result
from mimo_engine.bench.slice import SliceOptions
from mimo_engine.bench.start import started_slice
from mimo_engine.bench.touched import Touched, step_touches
from mimo_engine.cache.groups import num_pages_for
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import ConfigError
from mimo_engine.llm import LLM

__all__ = ["BATCHES", "CONTEXTS", "bench_steps", "peers", "random_prompts", "record", "timed"]

BATCHES = (1, 8, 32, 128)
CONTEXTS = (1024,)
_CHUNK = 8192
_NUM_TOGETHER, _NUM_MORE = 8, 64
"""Steps of all requests at once, at least, and by how many tokens one run is longer."""
_PEERS = {  # ms; perf.md 1
    "vLLM 0.26.0": {1: 2.19, 8: 6.57, 32: 14.69, 128: 36.0, 4096: 67.9, 32768: 580},
    "SGLang 0.5.17": {1: 2.67, 8: 6.38, 32: 12.58, 128: 19.63, 4096: 57.6, 32768: 479},
}


def random_prompts(count: int, length: int, generator: torch.Generator) -> list[list[int]]:
    """Of ids that mean nothing in particular."""
    return [
        torch.randint(1000, 150_000, (length,), generator=generator).tolist() for _ in range(count)
    ]


def timed(engine: LLM, prompts: list[list[int]], num_tokens: int) -> float:
    """Seconds."""
    params = SamplingParams(max_tokens=num_tokens, temperature=1.0, ignore_eos=True, seed=1)
    torch.cuda.synchronize()
    started = perf_counter()
    engine.generate(prompts, params)
    return perf_counter() - started


def peers(size: int, options: SliceOptions) -> dict[str, float | None]:
    """Milliseconds, by batch size or length of prompt; empty where the slice is not theirs."""
    is_theirs = options.layers == 12 and options.weights == "random-fp8"
    return {name: own.get(size) for name, own in _PEERS.items()} if is_theirs else {}


def record(name: str, options: SliceOptions, ceilings: Ceilings, own: Mapping[str, object]) -> None:
    """One line of benchmarks/results/<name>.jsonl."""
    payload: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "config": asdict(options),
        "copy_TB_per_s": round(ceilings.copy_bytes_per_s / 1e12, 3),
        **own,
    }
    append_result(name, payload)


def _short(batch: int, context: int, depth: int) -> int:
    """Tokens of the shorter run: while the last prompts are computed, the first requests decode
    already."""
    return (batch * context // _CHUNK + _NUM_TOGETHER) * (1 + depth)


def _measure(engine: LLM, batch: int, context: int, num_rounds: int) -> tuple[float, Touched]:
    """(milliseconds of a step, what it touches)."""
    generator = torch.Generator().manual_seed(batch)
    short = _short(batch, context, _depth(engine))
    timed(engine, random_prompts(batch, context, generator), short)
    times = []
    for _ in range(num_rounds):
        prompts = random_prompts(batch, context, generator)
        seconds = [timed(engine, prompts, count) for count in (short, short + _NUM_MORE)]
        times.append((seconds[1] - seconds[0]) / _NUM_MORE)
    return 1e3 * median(times), step_touches(engine, random_prompts(batch, context, generator))


def _check_room(engine: LLM, batch: int, context: int) -> None:
    """Raises ConfigError where the cache is too small for all requests at once: some would wait,
    and the step would be of fewer."""
    info, depth = engine.core.info(), _depth(engine)
    num_tokens = context + _short(batch, context, depth) + _NUM_MORE
    pages = batch * num_pages_for(num_tokens + 2 * (1 + depth), info.page_size)
    if pages > info.num_full_pages:
        raise ConfigError(
            f"{batch} requests of {num_tokens} tokens need {pages} pages and the cache has "
            f"{info.num_full_pages}: raise --kv-cache-gib {pages / info.num_full_pages:.1f} times"
        )


def _depth(engine: LLM) -> int:
    """Drafts of a step."""
    return engine.core.executor.worker.num_draft_layers


def bench_steps(
    options: SliceOptions,
    *,
    batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS,
    drafts: int = 0,
    check: bool = False,
) -> int:
    """Print the table of decode steps and append a JSON line for each. drafts: verified and made in
    every step. check: compare logits first, in a line of its own (`compare_slices`). Returns 1
    where these are further apart than is stated, otherwise 0.

    Raises ConfigError where the cache is too small for a size, before the first one is timed.
    """
    ceilings = measure_ceilings()
    problems: list[str] = []
    if check:
        errors = compare_slices(options.weights)
        problems = beyond(errors)
        record("step", options, ceilings, {"logits": errors, "beyond": problems})
    with started_slice(options, num_drafts=drafts, max_num_batched_tokens=_CHUNK) as (
        engine,
        start,
    ):
        print(
            f"{torch.cuda.get_device_name()}, {options.layers} layers {options.weights}, "
            f"{drafts} drafts, start {start}"
        )
        print(f"{'batch':>6}{'context':>9}{'ms':>9}{'experts':>9}{'GB':>8}{'share':>7}   peers")
        sizes = [(batch, context) for context in contexts for batch in batches]
        for batch, context in sizes:
            _check_room(engine, batch, context)
        for batch, context in sizes:
            ms, touched = _measure(engine, batch, context, options.rounds)
            share = touched.num_all_bytes / ceilings.copy_bytes_per_s / (ms / 1e3)
            own = peers(batch, options) if context == 1024 and not drafts else {}
            print(
                f"{batch:>6}{context:>9}{ms:>9.3f}{touched.num_experts:>9.1f}"
                f"{touched.num_all_bytes / 1e9:>8.2f}{share:>7.0%}   {own or ''}",
                flush=True,
            )
            line = {
                "drafts": drafts,
                "start": start,
                "batch": batch,
                "context": context,
                "ms": round(ms, 4),
                "experts": round(touched.num_experts, 1),
                "GB": round(touched.num_all_bytes / 1e9, 3),
                "share_of_limit": round(share, 4),
                "peers_ms": own,
            }
            record("step", options, ceilings, line)
    for problem in problems:
        print(f"logits too far apart: {problem}")
    return 1 if problems else 0
