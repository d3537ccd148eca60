"""One launch for all segments: a program takes a tile of queries and passes over their keys.

The rows of a tile are queries times query heads of one KV head. The output, the largest score and
the sum of weights of every row stay in registers; scores exist for one tile of keys at a time. Keys
that no query of the tile sees are never read, and scores are masked only in tiles of keys that some
query does not see whole.

Weights are powers of two, of scores times log2(e): the same as powers of e, in one instruction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import get_args

import torch
import triton
import triton.language as tl

from mimo_engine.kernels.segment_attention.plan import TILE_ROWS, SegmentPlan, packed_heads
from mimo_engine.kernels.segment_attention.reference import SinkMode

__all__ = ["segment_attention"]

_MAX_SIZE = 256
_UNBOUNDED = 1 << 30
"""Keys to the left or right where there is no bound."""
_LOG2E = tl.constexpr(math.log2(math.e))
# The largest score before there is one. Finite: the difference of two infinities is no number.
_LOWEST = tl.constexpr(-(2.0**100))


@triton.jit
def _weights(scores, scale, peak, total):
    """(weights, peak, total, what earlier weights are worth), of rows with peak and total before.

    scale turns scores into powers of two; peak is one, and the weights are relative to it.
    """
    new_peak = tl.maximum(peak, tl.max(scores, axis=1) * scale)
    weights = tl.exp2(scores * scale - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    return weights, new_peak, total * shrink + tl.sum(weights, axis=1), shrink


@triton.jit
def _over_keys(
    q,
    k_ptr,
    v_ptr,
    k_stride,
    v_stride,
    first_query,
    last_query,
    query,
    length,
    left,
    right,
    scale,
    sink,
    peak,
    total,
    IS_KEY0: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    KEYS: tl.constexpr,
):
    """The weighted mean of values, of the rows of a tile; key 0 of its segment is at k_ptr.

    query, sink, peak and total [rows]; sink is in units of q . k and for IS_KEY0 alone.
    """
    columns = tl.arange(0, PADDED)
    # Keys that some query sees, and keys that all see: those of the first and last query decide.
    first_key = tl.maximum(first_query - left, 0)
    end_key = tl.minimum(last_query + right, length - 1) + 1
    first_of_all = last_query - left
    end_of_all = tl.minimum(first_query + right, length - 1) + 1
    low = query - left
    reach = (tl.minimum(query + right, length - 1) - low).to(tl.uint32)
    out = tl.zeros((q.shape[0], PADDED), tl.float32)
    for key in range(first_key, end_key, KEYS):
        keys = key + tl.arange(0, KEYS)
        # Values of the next segment must not be read: 0 times one of them may be no number.
        inside = (keys < end_key)[:, None] & (columns < SIZE)[None, :]
        rows = keys.to(tl.int64)[:, None]
        k = tl.load(k_ptr + rows * k_stride + columns[None, :], mask=inside, other=0.0)
        v = tl.load(v_ptr + rows * v_stride + columns[None, :], mask=inside, other=0.0)
        scores = tl.dot(q, tl.trans(k))
        if IS_KEY0:  # noqa: SIM102 - the compiler knows this one, the GPU the next
            if key == 0:
                scores += tl.where((keys == 0)[None, :], sink[:, None], 0.0)
        if (key < first_of_all) | (key + KEYS > end_of_all):
            # Left of `low` the difference is a huge unsigned number: one comparison does for both.
            seen = (keys[None, :] - low[:, None]).to(tl.uint32) <= reach[:, None]
            scores = tl.where(seen, scores, float("-inf"))
        weights, peak, total, shrink = _weights(scores, scale, peak, total)
        out = tl.dot(weights.to(v.dtype), v, out * shrink[:, None])
    return out / tl.where(total > 0, total, 1.0)[:, None]


@triton.jit
def _attend(
    q_ptr,
    k_ptr,
    v_ptr,
    sink_ptr,
    tile_ptr,
    out_ptr,
    q_stride,
    q_head_stride,
    k_stride,
    k_head_stride,
    v_stride,
    v_head_stride,
    left,
    right,
    softmax_scale,
    NUM_KV_HEADS: tl.constexpr,
    RATIO: tl.constexpr,
    SIZE: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    IS_KEY0: tl.constexpr,
    HEADS: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    PADDED: tl.constexpr,
):
    """One tile of tile_ptr [T, 3] (plan.py), for HEADS of the RATIO query heads of a KV head."""
    HEAD_TILES: tl.constexpr = (RATIO + HEADS - 1) // HEADS
    program = tl.program_id(0)
    kv_head = program // HEAD_TILES % NUM_KV_HEADS
    tile = tile_ptr + program // (NUM_KV_HEADS * HEAD_TILES) * 3
    start = tl.load(tile).to(tl.int64)
    length, first_query = tl.load(tile + 1), tl.load(tile + 2)

    row = tl.arange(0, QUERIES * HEADS)
    query = first_query + row // HEADS
    own_head = program % HEAD_TILES * HEADS + row % HEADS
    head = kv_head * RATIO + own_head
    has_row = (query < length) & (own_head < RATIO)
    columns = tl.arange(0, PADDED)[None, :]
    mask = has_row[:, None] & (columns < SIZE)
    place = (start + query)[:, None]
    q_places = q_ptr + place * q_stride + head[:, None] * q_head_stride + columns
    q = tl.load(q_places, mask=mask, other=0.0)

    total = tl.zeros((QUERIES * HEADS,), tl.float32)
    peak, sink = total + _LOWEST, total
    if HAS_COLUMN or IS_KEY0:
        sink = tl.load(sink_ptr + head, mask=has_row, other=0.0).to(tl.float32)
    if HAS_COLUMN:
        peak = tl.maximum(sink * _LOG2E, _LOWEST)
        total = tl.exp2(sink * _LOG2E - peak)
    out = _over_keys(
        q, k_ptr + start * k_stride + kv_head * k_head_stride,
        v_ptr + start * v_stride + kv_head * v_head_stride, k_stride, v_stride,
        first_query, tl.minimum(first_query + QUERIES, length) - 1, query, length, left, right,
        softmax_scale * _LOG2E, sink / softmax_scale, peak, total, IS_KEY0, SIZE, PADDED, KEYS,
    )  # fmt: skip
    out_places = out_ptr + (place * (NUM_KV_HEADS * RATIO) + head[:, None]) * SIZE + columns
    tl.store(out_places, out.to(out_ptr.dtype.element_ty), mask=mask)


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    *,
    left: int | None,
    right: int | None,
    sinks: torch.Tensor | None = None,
    sink_mode: SinkMode = "extra_column",
    softmax_scale: float,
) -> torch.Tensor:
    """See the package: bfloat16 alone, and softmax_scale > 0."""
    _check(q, k, v, lengths)
    assert sink_mode in get_args(SinkMode), sink_mode
    assert softmax_scale > 0, softmax_scale
    num_rows, num_heads, size = q.shape
    num_kv_heads = k.shape[1]
    plan = _planned(lengths, num_heads, num_kv_heads, q.device)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    if num_rows == 0:
        return out
    ratio, heads = num_heads // num_kv_heads, plan.packed_heads
    padded = max(16, triton.next_power_of_2(size))
    _attend[(plan.tiles.shape[0] * num_kv_heads * triton.cdiv(ratio, heads),)](
        q,
        k,
        v,
        q if sinks is None else sinks,
        plan.tiles,
        out,
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        v.stride(0),
        v.stride(1),
        _bound(left),
        _bound(right),
        softmax_scale,
        NUM_KV_HEADS=num_kv_heads,
        RATIO=ratio,
        SIZE=size,
        HAS_COLUMN=sinks is not None and sink_mode == "extra_column",
        IS_KEY0=sinks is not None and sink_mode == "key0",
        HEADS=heads,
        QUERIES=TILE_ROWS // heads,
        KEYS=64 if padded <= 128 else 32,
        PADDED=padded,
        num_warps=8,
        num_stages=3 if padded <= 64 else 2,
        # Two programs share a multiprocessor: one multiplies while the other's weights are made.
        maxnreg=128 if padded <= 64 else None,
    )
    return out


def _check(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, lengths: Sequence[int]) -> None:
    if {x.dtype for x in (q, k, v)} != {torch.bfloat16}:
        raise ValueError(
            f"segment attention in Triton takes bfloat16, not {q.dtype}, {k.dtype} and {v.dtype}:"
            " use its torch form"
        )
    num_rows, num_heads, size = q.shape
    assert k.shape == v.shape == (num_rows, k.shape[1], size), (q.shape, k.shape, v.shape)
    assert all(x.stride(2) == 1 for x in (q, k, v)), "the last stride has to be 1"
    assert num_heads % k.shape[1] == 0, (q.shape, k.shape)
    assert size <= _MAX_SIZE, size
    assert sum(lengths) == num_rows, (sum(lengths), q.shape)


def _planned(
    lengths: Sequence[int], num_heads: int, num_kv_heads: int, device: torch.device
) -> SegmentPlan:
    if not isinstance(lengths, SegmentPlan):
        return SegmentPlan.of(
            lengths, num_heads=num_heads, num_kv_heads=num_kv_heads, device=device
        )
    assert lengths.packed_heads == packed_heads(num_heads, num_kv_heads), "a plan for other heads"
    assert lengths.tiles.device == device, (lengths.tiles.device, device)
    return lengths


def _bound(value: int | None) -> int:
    assert value is None or value >= 0, value
    return _UNBOUNDED if value is None else min(value, _UNBOUNDED)
