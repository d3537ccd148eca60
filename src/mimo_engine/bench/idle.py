"""Where the time of decode steps and of a prompt goes on the GPU, kernel by kernel, and how much of
it the GPU waits.

    python -m mimo_engine.bench.idle [--layers 12] [--drafts 3]

Steps at batch 1 of a slice with random weights, by the clock first, then under torch's profiler,
which makes the host slower and the kernels not. Two shares of waiting: of the time between a
step's first kernel and the next one's, as traced; and of the clock's time of a step without the
profiler, against the traced time in which some kernel ran.

With drafts a step is cut where the draft layers begin: verification before, drafts from there on,
each against the bytes that it touches at a measured copy rate. A JSON line for each part.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from typing import Any, get_args

import torch
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]
from torch.profiler import ProfilerActivity, profile

from mimo_engine.bench.ceilings import Ceilings, measure_ceilings
from mimo_engine.bench.decode import random_prompts, record, timed
from mimo_engine.bench.slice import SliceOptions
from mimo_engine.bench.start import started_slice
from mimo_engine.bench.touched import step_touches
from mimo_engine.config.engine import Mxfp4Activations, RandomWeights
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.llm import LLM
from mimo_engine.messages import NewRequest

__all__ = ["Kernel", "Parts", "main", "parts_of", "usage", "whole_steps"]

_NUM_WARM, _NUM_STEPS = 16, 64
_CONTEXT, _PROMPT = 1024, 4096
_FIRST, _FIRST_OF_DRAFTS = "_begin", "_begin_drafts"
"""Kernels that a step and the draft layers' passes begin with (kernels/decode_step/triton.py)."""
_SHOWN = 0.002
"""Share of all kernels' time from which on one is printed."""


@dataclass(frozen=True, order=True, slots=True)
class Kernel:
    """One run of one, or a copy; nanoseconds."""

    start: int
    end: int
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """Of a step, from a part's first kernel to the next part's, milliseconds; the mean."""

    verification_ms: float
    drafts_ms: float


def whole_steps(kernels: Sequence[Kernel]) -> list[list[Kernel]]:
    """Those between the first kernels of two steps: what comes before and after is left out.

    Raises ValueError where there are fewer than two.
    """
    starts = [i for i, kernel in enumerate(kernels) if kernel.name == _FIRST]
    if len(starts) < 3:
        raise ValueError(f"{len(starts)} runs of {_FIRST}: no captured steps were traced")
    return [list(kernels[a:b]) for a, b in pairwise(starts)]


def parts_of(steps: Sequence[Sequence[Kernel]]) -> Parts:
    """Of all steps but the last: one's end is the next one's start."""
    verification = drafts = 0
    for step, following in pairwise(steps):
        end = following[0].start
        cut = next((kernel.start for kernel in step if kernel.name == _FIRST_OF_DRAFTS), end)
        verification += cut - step[0].start
        drafts += end - cut
    count = 1e6 * (len(steps) - 1)
    return Parts(verification_ms=verification / count, drafts_ms=drafts / count)


def usage(kernels: Sequence[Kernel], count: int, clock_ms: float) -> dict[str, Any]:
    """Of `count` steps or prompts, each: milliseconds by the clock, traced from the first kernel to
    the last, with some kernel running, and of all kernels; shares of waiting; and of each kernel
    (calls, milliseconds), the longest first."""
    busy = end = 0
    by_name: dict[str, tuple[int, int]] = {}
    for kernel in sorted(kernels):
        busy += max(0, kernel.end - max(kernel.start, end))
        end = max(end, kernel.end)
        calls, total = by_name.get(kernel.name, (0, 0))
        by_name[kernel.name] = calls + 1, total + kernel.end - kernel.start
    span = end - min(kernel.start for kernel in kernels)
    busy_ms = busy / count / 1e6
    longest = sorted(by_name.items(), key=lambda item: -item[1][1])
    return {
        "clock_ms": round(clock_ms, 4),
        "span_ms": round(span / count / 1e6, 4),
        "busy_ms": round(busy_ms, 4),
        "kernels_ms": round(sum(total for _, total in by_name.values()) / count / 1e6, 4),
        "idle_traced": round(1 - busy / span, 4),
        "idle_by_clock": round(1 - busy_ms / clock_ms, 4),
        "kernels": {
            name[:60]: (round(calls / count, 2), round(total / count / 1e6, 5))
            for name, (calls, total) in longest
        },
    }


def _print(title: str, found: dict[str, Any]) -> None:
    """A table as the documentation has it."""
    shares = f"waits {found['idle_traced']:.1%} traced, {found['idle_by_clock']:.1%} by the clock"
    print(f"\n{title}: {found['busy_ms']} of {found['clock_ms']} ms by the clock; {shares}\n")
    print("| kernel | calls | ms |\n|---|---|---|")
    rest = 0.0
    for name, (calls, ms) in found["kernels"].items():
        if ms > _SHOWN * found["kernels_ms"]:
            print(f"| `{name}` | {calls:g} | {ms:.3f} |")
        else:
            rest += ms
    print(f"| the rest | | {rest:.3f} |", flush=True)


def _traced(run: profile) -> list[Kernel]:
    assert run.profiler is not None
    results = run.profiler.kineto_results
    assert results is not None
    return sorted(
        Kernel(event.start_ns(), event.start_ns() + event.duration_ns(), event.name())
        for event in results.events()
        if event.device_type() == DeviceType.CUDA
    )


def _decode(engine: LLM, prompt: list[int]) -> tuple[list[Kernel], float]:
    """(kernels of some steps, milliseconds of a step by the clock)."""
    core = engine.core
    params = SamplingParams(max_tokens=4096, temperature=1.0, ignore_eos=True, seed=1)
    core.add(NewRequest(request_id="idle", prompt_token_ids=prompt, params=params))
    for _ in range(_NUM_WARM):
        core.step()
    torch.cuda.synchronize()
    started = perf_counter()
    for _ in range(_NUM_STEPS):
        core.step()
    clock_ms = 1e3 * (perf_counter() - started) / _NUM_STEPS
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as run:
        for _ in range(_NUM_STEPS):
            core.step()
        torch.cuda.synchronize()
    core.abort("idle")
    while core.has_work:
        core.step()
    return _traced(run), clock_ms


def _bench_decode(
    options: SliceOptions, ceilings: Ceilings, engine: LLM, generator: torch.Generator
) -> None:
    depth = engine.core.executor.worker.num_draft_layers
    (prompt,) = random_prompts(1, _CONTEXT, generator)
    kernels, clock_ms = _decode(engine, prompt)
    steps = whole_steps(kernels)
    found = usage([kernel for step in steps for kernel in step], len(steps), clock_ms)
    _print(f"decode, batch 1, {depth} drafts", found)
    line: dict[str, Any] = {"what": "decode", "drafts": depth, **found}
    if depth:
        parts = parts_of(steps)
        touched = step_touches(engine, random_prompts(1, _CONTEXT, generator))
        for name, ms, num_bytes in (
            ("verification", parts.verification_ms, touched.num_bytes),
            ("draft layers", parts.drafts_ms, touched.num_draft_bytes),
        ):
            share = 1e3 * num_bytes / ceilings.copy_bytes_per_s / ms
            line[name] = {
                "ms": round(ms, 4),
                "GB": round(num_bytes / 1e9, 3),
                "share_of_limit": round(share, 4),
            }
            print(f"{name}: {ms:.3f} ms, {num_bytes / 1e9:.2f} GB, {share:.0%} of the limit")
        line["experts"] = round(touched.num_experts, 1)
    record("idle", options, ceilings, line)


def _bench_prompt(
    options: SliceOptions, ceilings: Ceilings, engine: LLM, generator: torch.Generator
) -> None:
    for _ in range(2):
        timed(engine, random_prompts(1, _PROMPT, generator), 1)
    clock_ms = 1e3 * timed(engine, random_prompts(1, _PROMPT, generator), 1)
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as run:
        timed(engine, random_prompts(1, _PROMPT, generator), 1)
        torch.cuda.synchronize()
    found = usage(_traced(run), 1, clock_ms)
    _print(f"a prompt of {_PROMPT}", found)
    record("idle", options, ceilings, {"what": f"prompt of {_PROMPT}", **found})


def main() -> None:
    """Print the tables and append a JSON line each to benchmarks/results/idle.jsonl."""
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.bench.idle")
    parser.add_argument("--layers", type=int, default=SliceOptions().layers)
    parser.add_argument("--weights", choices=get_args(RandomWeights), default="random-fp8")
    parser.add_argument("--mxfp4-activations", choices=get_args(Mxfp4Activations), default="bf16")
    parser.add_argument("--drafts", type=int, default=0, help="verified and made in every step")
    parser.add_argument("--no-prompt", action="store_true", help="decode steps alone")
    given = parser.parse_args()
    options = SliceOptions(
        layers=given.layers,
        weights=given.weights,
        mxfp4_activations=given.mxfp4_activations,
        kv_cache_gib=3.0,
    )
    ceilings = measure_ceilings()
    generator = torch.Generator().manual_seed(0)
    with started_slice(options, num_drafts=given.drafts, max_num_seqs=4) as (engine, start):
        print(f"{torch.cuda.get_device_name()}, {options.layers} layers, start {start}")
        _bench_decode(options, ceilings, engine, generator)
        if not given.no_prompt:
            _bench_prompt(options, ceilings, engine, generator)


if __name__ == "__main__":
    main()
