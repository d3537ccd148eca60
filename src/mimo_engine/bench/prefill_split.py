"""Where the time of a prefill goes: the kernels of one prompt, by their sums.

    python -m mimo_engine.bench.prefill_split [--layers 6] [--lengths 4096 8192]

Through `LLM.generate`, on the first layers of MiMo-V2.5 in FP8 with random weights (slice.py). The
clock's time is beside the sum: the difference is what the GPU waited.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from time import perf_counter

import torch
from torch.profiler import ProfilerActivity, profile

from mimo_engine.bench.record import append_result
from mimo_engine.bench.slice import random_slice
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.llm import LLM

__all__ = ["main", "split"]

_NUM_WARM_UPS = 2
_NAME_LENGTH = 60


def split(engine: LLM, prompt: Sequence[int]) -> tuple[float, dict[str, tuple[int, float]]]:
    """(milliseconds by the clock, without the profiler; by kernel: calls and milliseconds)."""
    params = SamplingParams(max_tokens=1, temperature=1.0, ignore_eos=True, seed=1)

    def generate() -> None:
        engine.generate([list(prompt)], params)
        torch.cuda.synchronize()

    for _ in range(_NUM_WARM_UPS):
        generate()
    started = perf_counter()
    generate()
    clock_ms = 1e3 * (perf_counter() - started)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        generate()
    kernels = {
        event.key[:_NAME_LENGTH]: (event.count, event.self_device_time_total / 1e3)
        for event in profiler.key_averages()
        if event.device_type.name == "CUDA"
    }
    return clock_ms, dict(sorted(kernels.items(), key=lambda item: -item[1][1]))


def run(num_layers: int, lengths: Sequence[int]) -> None:
    """Print a table a length and append one JSON line."""
    generator = torch.Generator().manual_seed(0)
    results = {}
    with random_slice(num_layers, "random-fp8", kv_cache_gib=2.0, max_num_seqs=4) as engine:
        for length in lengths:
            prompt = torch.randint(1000, 150_000, (length,), generator=generator).tolist()
            clock_ms, kernels = split(engine, prompt)
            total = sum(ms for _, ms in kernels.values())
            print(f"{length} tokens, {num_layers} layers: {clock_ms:.2f} ms, kernels {total:.2f}")
            for name, (count, ms) in kernels.items():
                print(f"  {ms:>8.3f} {ms / total:>5.0%} {count:>5}  {name}", flush=True)
            results[str(length)] = {"clock_ms": round(clock_ms, 3), "kernels": kernels}
    append_result(
        "prefill_split",
        {"device": torch.cuda.get_device_name(), "layers": num_layers, "results": results},
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 8192])
    options = parser.parse_args()
    run(options.layers, options.lengths)


if __name__ == "__main__":
    main()
