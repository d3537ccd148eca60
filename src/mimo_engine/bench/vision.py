"""What one layer of the vision tower costs as images grow: windowed, beside full attention.

    ms, us/patch     one block at the real geometry, attention and MLP, best of some passes
    MB, kB/patch     the most memory that a pass takes beside its input and the weights
    x first          of each, per patch, over the first row: 1 is linear

A windowed layer must stay at about 1. Its attention is compared with the dense definition first:
a fast layer that is wrong is no result. On a CPU, time is that of one thread and counts while it
runs, because others may share the processor; memory is the growth of the process, whose peak the
kernel resets before each pass (/proc/self/clear_refs), in a process of its own for each size, so
that no pass can hide in what an earlier one left.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import get_args

import torch

from mimo_engine.bench.record import append_result
from mimo_engine.config.engine import KernelChoice
from mimo_engine.config.vision import MiMoVLVisionConfig, VisionLayerSpec, VisionOrder
from mimo_engine.kernels.dispatch import Kernels, choose_kernels
from mimo_engine.kernels.segment_attention import SegmentPlan, segment_attention_reference
from mimo_engine.model.vision import MiMoVisionBlock
from mimo_engine.model.vision_grid import rotary_tables

__all__ = ["Measurement", "main", "measure"]

WINDOW = 64
# Patches on each side of a square image.
SIDES = (32, 64, 128)
NUM_PASSES = 3
# Windowed layers, memory of a patch at the largest size over that at the smallest.
_MEMORY_LIMIT = 1.5

WINDOWED = VisionLayerSpec(order=VisionOrder.ROW, window=WINDOW, has_sinks=True)
FULL = VisionLayerSpec(order=VisionOrder.ROW, window=None, has_sinks=False)
REAL = MiMoVLVisionConfig(
    layers=(WINDOWED,),
    hidden_size=1280,
    intermediate_size=4608,
    num_heads=32,
    num_kv_heads=8,
    head_dim=64,
    in_channels=3,
    patch_size=16,
    temporal_patch_size=2,
    spatial_merge_size=2,
    out_hidden_size=4096,
    norm_eps=1e-6,
    sinks="extra_column",
    merger_norm="layernorm",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One layer over one image."""

    layer: str
    num_patches: int
    ms: float
    extra_mb: float

    @property
    def us_per_patch(self) -> float:
        return self.ms * 1e3 / self.num_patches

    @property
    def kb_per_patch(self) -> float:
        return self.extra_mb * 1e3 / self.num_patches


def check(kernels: Kernels, device: str, dtype: torch.dtype) -> None:
    """Windowed and full attention at the real geometry against the dense definition."""
    torch.manual_seed(0)
    lengths = [576, 300]
    q, k, v = (torch.randn(sum(lengths), heads, 64, device=device) for heads in (32, 8, 8))
    q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    sinks = torch.randn(32, device=device)
    # bf16: the output is rounded, and in fused kernels the weights too (2^-8 each).
    tolerance = 1e-4 if dtype is torch.float32 else 2e-2
    for window, sink in ((WINDOW, sinks), (None, None)):
        outputs = [
            attend(
                q, k, v, lengths, left=window, right=window, sinks=sink, softmax_scale=64**-0.5
            ).float()
            for attend in (kernels.segment_attention, segment_attention_reference)
        ]
        torch.testing.assert_close(*outputs, atol=tolerance, rtol=tolerance)


@torch.inference_mode()
def measure(
    spec: VisionLayerSpec, side: int, choice: KernelChoice, device: str, dtype: torch.dtype
) -> Measurement:
    """A block of random weights over an image of side x side patches."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    block = MiMoVisionBlock(REAL, spec, choose_kernels(choice, torch.device(device), dtype))
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    block.to(device, dtype)
    num_passes = NUM_PASSES if spec.window is not None or device != "cpu" else 1
    _pass(block, 8, device, dtype)
    passes = [_pass(block, side, device, dtype) for _ in range(num_passes)]
    return Measurement(
        layer="full" if spec.window is None else f"window {spec.window}",
        num_patches=side * side,
        ms=min(seconds for seconds, _ in passes) * 1e3,
        extra_mb=max(num_bytes for _, num_bytes in passes) / 1e6,
    )


def _pass(block: MiMoVisionBlock, side: int, device: str, dtype: torch.dtype) -> tuple[float, int]:
    """(seconds, bytes taken at the most)."""
    grids = [(1, side, side)]
    rope = rotary_tables(grids, merge_size=2, head_dim=64, theta=REAL.rope_theta, device=device)
    x = torch.randn(side * side, REAL.hidden_size, device=device).to(dtype)
    # The tower makes one for all of its layers.
    lengths = SegmentPlan.of(
        [side * side],
        num_heads=REAL.num_heads,
        num_kv_heads=REAL.num_kv_heads,
        device=device,
    )
    before = _reset_peak(device)
    clock = process_time if device == "cpu" else perf_counter
    start = clock()
    block(x, rope, lengths)
    if device != "cpu":
        torch.cuda.synchronize()
    seconds = clock() - start
    return seconds, _peak(device) - before


def _reset_peak(device: str) -> int:
    """Bytes in use now; from here on counts the peak."""
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return _status_bytes("VmRSS")


def _peak(device: str) -> int:
    return _status_bytes("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def _status_bytes(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not report {name}")


def _print(rows: Sequence[Measurement]) -> None:
    print(
        f"{'layer':<10} {'patches':>8} {'ms':>9} {'us/patch':>9} {'x first':>8} "
        f"{'MB':>8} {'kB/patch':>9} {'x first':>8}"
    )
    for row in rows:
        first = next(other for other in rows if other.layer == row.layer)
        print(
            f"{row.layer:<10} {row.num_patches:>8} {row.ms:>9.1f} {row.us_per_patch:>9.2f} "
            f"{row.us_per_patch / first.us_per_patch:>8.2f} {row.extra_mb:>8.0f} "
            f"{row.kb_per_patch:>9.1f} {row.kb_per_patch / first.kb_per_patch:>8.2f}"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append one JSON line. Fails when memory is not linear."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--kernels", choices=get_args(KernelChoice), default="auto")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    device: str = options.device
    dtype = torch.float32 if device == "cpu" else torch.bfloat16
    choice: KernelChoice = options.kernels
    kernels = choose_kernels(choice, torch.device(device), dtype)
    check(kernels, device, dtype)
    rows: list[Measurement] = []
    for spec in (WINDOWED, FULL):
        for side in SIDES:
            fresh = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(max_workers=1, mp_context=fresh) as process:
                rows.append(process.submit(measure, spec, side, choice, device, dtype).result())
    _print(rows)
    windowed = [row for row in rows if row.layer != "full"]
    growth = windowed[-1].kb_per_patch / windowed[0].kb_per_patch
    assert growth <= _MEMORY_LIMIT, "a windowed layer's memory is not linear in the patches"
    if not options.no_record:
        name = "cpu" if device == "cpu" else torch.cuda.get_device_name(device)
        config = {
            "device": name,
            "dtype": str(dtype).removeprefix("torch."),
            "kernels": kernels.name,
            "geometry": "real",
            "threads": 1,
        }
        path = append_result("vision", {"config": config, "rows": [asdict(row) for row in rows]})
        print(f"appended to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
