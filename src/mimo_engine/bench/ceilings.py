"""What this GPU was measured to do, and how calls are timed on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

__all__ = ["Ceilings", "context_is_lost", "graph_seconds", "measure_ceilings"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ceilings:
    """What this card was measured to do."""

    copy_bytes_per_s: float
    """Read and written."""
    bf16_flops: float
    fp8_flops: float


def context_is_lost() -> bool:
    """Whether a kernel broke the device's context: every later call of this process fails then."""
    try:
        torch.cuda.synchronize()
    except torch.AcceleratorError:
        return True
    return False


def graph_seconds(calls: Sequence[Callable[[], object]], *, num_rounds: int = 11) -> float:
    """Of one call: the calls are captured in a graph, in order; the median of its replays."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        calls[0]()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    kept = []
    with torch.cuda.graph(graph):
        for call in calls:
            kept.append(call())
    for _ in range(3):
        graph.replay()
    times = []
    for _ in range(num_rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(calls))
    return median(times)


def measure_ceilings() -> Ceilings:
    """On random data; some seconds."""
    source = torch.randn(2**30, device="cuda").bfloat16()
    target = torch.empty_like(source)
    # A kernel, not a copy of memory: in a graph that one is slower.
    copy = graph_seconds([lambda: torch.mul(source, 1.0, out=target)] * 4)
    copied = 2 * source.nbytes / copy
    size = 8192
    a, b = (torch.randn(size, size, device="cuda").bfloat16() for _ in range(2))
    bf16 = graph_seconds([lambda: a @ b] * 4)
    a8, b8 = a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn).t()
    one = torch.ones((), device="cuda")
    multiply = torch._scaled_mm  # pyright: ignore[reportPrivateImportUsage]
    fp8 = graph_seconds([lambda: multiply(a8, b8, one, one, out_dtype=torch.bfloat16)] * 4)
    return Ceilings(
        copy_bytes_per_s=copied, bf16_flops=2 * size**3 / bf16, fp8_flops=2 * size**3 / fp8
    )
