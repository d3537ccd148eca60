"""Cases of the towers' attention."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch

from mimo_engine.kernels.op import Arguments, Case, Op, Work
from mimo_engine.kernels.segment_attention import reference, triton
from mimo_engine.kernels.segment_attention.plan import SegmentPlan
from mimo_engine.kernels.segment_attention.reference import SinkMode

__all__ = ["OP"]

Bounds = tuple[int | None, int | None]
Heads = tuple[int, int, int]
"""(query heads, KV heads, width)."""

_FULL, _CAUSAL = (None, None), (None, 0)
_VISION, _AUDIO = (32, 8, 64), (16, 16, 64)


def _make(
    lengths: Sequence[int],
    heads: Heads,
    bounds: Bounds,
    sink_mode: SinkMode | None,
    is_planned: bool,
    device: torch.device,
) -> Arguments:
    num_heads, num_kv_heads, size = heads
    # Strided, as the parts of one product are.
    rows = torch.randn(sum(lengths), num_heads + 2 * num_kv_heads, size, device=device)
    q, k, v = rows.bfloat16().split((num_heads, num_kv_heads, num_kv_heads), dim=1)
    if is_planned:
        lengths = SegmentPlan.of(
            lengths, num_heads=num_heads, num_kv_heads=num_kv_heads, device=device
        )
    return {
        "q": q,
        "k": k,
        "v": v,
        "lengths": lengths,
        "left": bounds[0],
        "right": bounds[1],
        # The largest weigh about as much as a few keys.
        "sinks": None if sink_mode is None else 2 * torch.randn(num_heads, device=device),
        "sink_mode": sink_mode or "extra_column",
        "softmax_scale": size**-0.5,
    }


def _work(arguments: Arguments) -> Work:
    q, lengths = arguments["q"], arguments["lengths"]
    num_pairs = sum(
        length
        + _num_on_a_side(length, arguments["left"])
        + _num_on_a_side(length, arguments["right"])
        for length in lengths
    )
    return Work(
        num_bytes=2 * q.nbytes + arguments["k"].nbytes + arguments["v"].nbytes,
        num_flops=4 * num_pairs * q.shape[1] * q.shape[2],
    )


def _num_on_a_side(length: int, bound: int | None) -> int:
    """Pairs of rows of a segment that are 1 ... bound apart."""
    reach = length - 1 if bound is None else min(bound, length - 1)
    return length * reach - reach * (reach + 1) // 2


def _small(
    lengths: Sequence[int],
    heads: Heads,
    bounds: Bounds,
    sink_mode: SinkMode | None = None,
    *,
    is_planned: bool = True,
) -> Case:
    return Case(
        name=f"{list(lengths)} rows, heads {heads}, {bounds}, {sink_mode}",
        make=partial(_make, lengths, heads, bounds, sink_mode, is_planned),
    )


def _real(
    name: str,
    lengths: Sequence[int],
    heads: Heads,
    bounds: Bounds,
    sink_mode: SinkMode | None = None,
) -> Case:
    return Case(
        name=name,
        make=partial(_make, lengths, heads, bounds, sink_mode, True),
        work=_work,
        is_small=False,
    )


def _exact(**arguments: Any) -> tuple[torch.Tensor]:
    """By the torch form in float32, which differs from the dense definition by float32's rounding
    and does not hold all pairs of rows."""
    wide = {name: arguments[name].float() for name in ("q", "k", "v")}
    return (reference.segment_attention(**{**arguments, **wide}).to(torch.bfloat16),)


OP = Op(
    name="segment_attention",
    reference=_exact,
    triton=lambda **named: (triton.segment_attention(**named),),
    cases=(
        _small([1], (2, 1, 16), _FULL),
        _small([3, 0, 130, 64, 1], (4, 2, 16), _FULL),
        _small([200], (1, 1, 80), _CAUSAL, is_planned=False),
        _small([70, 129], (6, 2, 24), (0, 0), "extra_column"),
        _small([33, 65, 128], (8, 2, 64), (64, 64), "extra_column"),
        _small([260], (4, 1, 64), (64, 64), "key0", is_planned=False),
        _small([150, 40], (2, 2, 40), (128, 0)),
        _small([5, 150], (3, 1, 8), (None, 7), "key0"),
        _small([90, 20], (5, 1, 128), (3, None), "extra_column"),
        _small([40, 100], (20, 1, 32), _FULL, "extra_column"),
        _small([31, 9], (2, 1, 200), (10**9, 2)),
        _real("vision 4096 patches, full", [4096], _VISION, _FULL),
        _real("vision 4096 patches, window", [4096], _VISION, (64, 64), "extra_column"),
        _real("vision 4096 patches, window, key 0", [4096], _VISION, (64, 64), "key0"),
        _real("vision 16 x 1024 patches, full", [1024] * 16, _VISION, _FULL),
        _real("vision 16 x 1024 patches, window", [1024] * 16, _VISION, (64, 64), "extra_column"),
        _real("audio 30 s, causal", [1501], _AUDIO, _CAUSAL),
        _real("audio 30 s, window", [1501], _AUDIO, (128, 0)),
        _real("audio 10 min, causal", [3000] * 10 + [1], _AUDIO, _CAUSAL),
        _real("audio 10 min, window", [3000] * 10 + [1], _AUDIO, (128, 0)),
    ),
    # The output and the weights are rounded to bfloat16.
    tolerance=5e-3,
)
