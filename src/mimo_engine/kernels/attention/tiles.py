"""What both attention kernels do: rows of heads in, tiles of keys into a running softmax.

A tile has rows of one KV head: for each row of the sequence the query heads that read that KV head,
so that keys are read once for all of them. Heads are padded to a power of two, `group`; place p of
a tile is head p % group of row p // group. Dk is a power of two (dk0) or a sum of two (dk0 + dk1):
192 is 128 + 64, two products in place of one padded to 256.

The softmax is in base 2, of scores times log2(e) / sqrt(Dk). Its running maximum begins at a finite
lowest value, so that a row which has seen nothing yet weighs a hidden key, whose score is -inf,
with 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["LOWEST", "Shape", "finish", "first_maxima", "first_seen", "load_q", "scan"]

LOWEST = tl.constexpr(-1e30)
_LOG2_E = tl.constexpr(math.log2(math.e))
_MIN_DIM = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """What the model fixes of a call: one constant of the kernels."""

    num_heads: int
    num_kv_heads: int
    heads: int
    """Query heads of a KV head."""
    group: int
    """The same, padded."""
    dk0: int
    dk1: int
    dv: int
    page: int
    log_page: int
    window: int
    """Positions that a row sees; 0: all."""
    has_sink: bool
    scale: float
    """Of scores, for exp2."""
    precision: str
    """Of products of float32."""

    @classmethod
    def of(
        cls,
        q: torch.Tensor,
        k_pool: torch.Tensor,
        v_pool: torch.Tensor,
        *,
        page_size: int,
        window: int | None,
        has_sink: bool,
    ) -> Shape:
        num_heads, dk = q.shape[1:]
        num_kv_heads, dv = v_pool.shape[1:]
        dk0 = 1 << (dk.bit_length() - 1)
        assert num_heads % num_kv_heads == 0
        assert k_pool.shape[1:] == (num_kv_heads, dk)
        assert all(_is_power(n) for n in (page_size, dv)), (page_size, dv)
        assert dv >= _MIN_DIM
        assert dk == dk0 or (_is_power(dk - dk0) and dk - dk0 >= _MIN_DIM), f"no tiles for {dk}"
        assert window is None or window > 0
        heads = num_heads // num_kv_heads
        return cls(
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            heads=heads,
            group=triton.next_power_of_2(heads),
            dk0=dk0,
            dk1=dk - dk0,
            dv=dv,
            page=page_size,
            log_page=page_size.bit_length() - 1,
            window=window or 0,
            has_sink=has_sink,
            scale=dk**-0.5 * math.log2(math.e),
            precision="tf32x3" if q.dtype is torch.float32 else "tf32",
        )


def _is_power(n: int) -> bool:
    return n > 0 and n & (n - 1) == 0


@triton.jit
def load_q(q_ptr, first_row, num_rows, kv_head, places, SHAPE: tl.constexpr):
    """(q[:, :dk0], q[:, dk0:]) of a tile; zeros where a place has no row or head."""
    row, head = places // SHAPE.group, places % SHAPE.group
    inside = ((row < num_rows) & (head < SHAPE.heads))[:, None]
    own = (first_row + row).to(tl.int64) * SHAPE.num_heads + kv_head * SHAPE.heads + head
    own = q_ptr + own[:, None] * (SHAPE.dk0 + SHAPE.dk1)
    q0 = tl.load(own + tl.arange(0, SHAPE.dk0)[None, :], mask=inside, other=0.0)
    q1 = q0
    if SHAPE.dk1 > 0:
        q1 = tl.load(own + SHAPE.dk0 + tl.arange(0, SHAPE.dk1)[None, :], mask=inside, other=0.0)
    return q0, q1


@triton.jit
def first_maxima(sink_ptr, split, kv_head, places, SHAPE: tl.constexpr):
    """(maxima, sums) before any key: of the sink, which split 0 alone counts, or of nothing."""
    maxima = tl.full(places.shape, LOWEST, tl.float32)
    sums = tl.zeros(places.shape, tl.float32)
    if SHAPE.has_sink:
        head = places % SHAPE.group
        own = tl.load(sink_ptr + kv_head * SHAPE.heads + head, mask=head < SHAPE.heads, other=0.0)
        maxima = tl.where(split == 0, own.to(tl.float32) * _LOG2_E, maxima)
        sums = tl.where(split == 0, 1.0, sums)
    return maxima, sums


@triton.jit
def first_seen(visible_from, position, SHAPE: tl.constexpr):
    """The first position that some row of a tile sees, whose first row is at `position`."""
    low = tl.maximum(visible_from, 0)
    if SHAPE.window > 0:
        low = tl.maximum(low, position - SHAPE.window + 1)
    return low


@triton.jit
def _pages(table_ptr, keys, end, SHAPE: tl.constexpr):
    """Pages of keys; from `end` on that of the last one, or any where there is none."""
    return tl.load(table_ptr + (tl.maximum(tl.minimum(keys, end - 1), 0) >> SHAPE.log_page))


@triton.jit
def _slots(pages, keys, end, SHAPE: tl.constexpr):
    """Slots of keys; from `end` on that of the last one: what is there may be no number."""
    return pages * SHAPE.page + (tl.minimum(keys, end - 1) & (SHAPE.page - 1))


@triton.jit
def _add_tile(
    q0,
    q1,
    k_ptr,
    v_ptr,
    slots,
    keys,
    positions,
    maxima,
    sums,
    total,
    IS_MASKED: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """(maxima, sums, total) with one more tile of keys, all seen by all rows unless IS_MASKED.

    k_ptr and v_ptr: of the KV head; keys and positions: positions of keys and of rows.
    """
    dk0: tl.constexpr = SHAPE.dk0
    dk1: tl.constexpr = SHAPE.dk1
    k_own = k_ptr + slots[:, None] * (SHAPE.num_kv_heads * (dk0 + dk1))
    k0 = tl.load(k_own + tl.arange(0, dk0)[None, :])
    scores = tl.dot(q0, tl.trans(k0), input_precision=SHAPE.precision)
    if dk1 > 0:
        k1 = tl.load(k_own + dk0 + tl.arange(0, dk1)[None, :])
        scores = tl.dot(q1, tl.trans(k1), scores, input_precision=SHAPE.precision)
    if IS_MASKED:
        distance = positions[:, None] - keys[None, :]
        if SHAPE.window > 0:
            # Both bounds in one: as an unsigned number a negative one is large.
            visible = distance.to(tl.uint32, bitcast=True) < SHAPE.window
        else:
            visible = distance >= 0
        scores = tl.where(visible, scores, float("-inf"))
    new_maxima = tl.maximum(maxima, tl.max(scores, axis=1) * SHAPE.scale)
    weights = tl.exp2(scores * SHAPE.scale - new_maxima[:, None])
    shrink = tl.exp2(maxima - new_maxima)
    sums = sums * shrink + tl.sum(weights, axis=1)
    v_own = v_ptr + slots[:, None] * (SHAPE.num_kv_heads * SHAPE.dv)
    v = tl.load(v_own + tl.arange(0, SHAPE.dv)[None, :])
    total = total * shrink[:, None]
    total = tl.dot(weights.to(v.dtype), v, total, input_precision=SHAPE.precision)
    return new_maxima, sums, total


@triton.jit
def scan(
    table_ptr,
    q0,
    q1,
    k_ptr,
    v_ptr,
    start,
    stop,
    end,
    positions,
    maxima,
    sums,
    total,
    TILE: tl.constexpr,
    IS_MASKED: tl.constexpr,
    SHAPE: tl.constexpr,
):
    """(maxima, sums, total) with the keys start ... stop - 1; no key from `end` on is read.

    table_ptr: the sequence's own row of the page table. Pages are loaded two tiles ahead: so the
    copies of a tile, which themselves run ahead of the products, do not wait for their addresses.
    What is carried from tile to tile has to be computed in between, or nothing would run ahead.
    """
    columns = tl.arange(0, TILE)
    slots = _slots(_pages(table_ptr, start + columns, end, SHAPE), start + columns, end, SHAPE)
    next_pages = _pages(table_ptr, start + TILE + columns, end, SHAPE)
    for first in range(start, stop, TILE):
        keys = first + columns
        maxima, sums, total = _add_tile(
            q0, q1, k_ptr, v_ptr, slots.to(tl.int64), keys, positions, maxima, sums, total,
            IS_MASKED, SHAPE,
        )  # fmt: skip
        slots = _slots(next_pages, keys + TILE, end, SHAPE)
        next_pages = _pages(table_ptr, keys + 2 * TILE, end, SHAPE)
    return maxima, sums, total


@triton.jit
def finish(out_ptr, sums, total, first_row, num_rows, kv_head, places, SHAPE: tl.constexpr):
    """The quotient to its rows of out; 0 for those that saw nothing."""
    row, head = places // SHAPE.group, places % SHAPE.group
    inside = ((row < num_rows) & (head < SHAPE.heads))[:, None]
    own = (first_row + row).to(tl.int64) * SHAPE.num_heads + kv_head * SHAPE.heads + head
    value = total / tl.where(sums > 0, sums, 1.0)[:, None]
    tl.store(
        out_ptr + own[:, None] * SHAPE.dv + tl.arange(0, SHAPE.dv)[None, :],
        value.to(out_ptr.dtype.element_ty),
        mask=inside,
    )
