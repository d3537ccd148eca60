"""Experts with many tokens in FP8: two tiles of weights at a time, and short tails.

A program takes up to ROWS slots of one expert by two tiles of TILE weight rows: gate and up of the
same columns, or neighbouring columns of down. Wide tiles (128) read the least from the cache for
each product; narrow ones (64) leave registers for two programs a multiprocessor, one of which
multiplies while the other scales its sums, or for REST. What is left of an expert below half a
tile, or beyond a whole one where REST allows it, is multiplied the other way round: weights are the
long side, tokens the short one of 32, so that little of it is padding; beyond a whole tile the
weights that are there already are used again. Slots that are not there are not read.
"""

# What is there in one form of a kernel alone is bound under its constant.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.activation.triton import activated
from mimo_engine.kernels.quant import FP8_BLOCK
from mimo_engine.kernels.quant.triton import quantised

__all__ = ["SHORT", "paired"]

SHORT = 32
"""Tokens of a short tile: the instruction takes no longer for 32 than for 16."""
_SHORT = tl.constexpr(SHORT)
_BLOCK = tl.constexpr(FP8_BLOCK)


@triton.jit(do_not_specialize=["num_tokens"])
def paired(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr, out_scale_ptr,
    tile_expert_ptr, tile_first_ptr, counts_ptr, slots_ptr, num_tokens, num_scale_rows,
    SLOTS_PER_ROW: tl.constexpr, SIZE: tl.constexpr, NUM_OUT: tl.constexpr, IS_UP: tl.constexpr,
    ROWS: tl.constexpr, REST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """out[slot, :], [slots, NUM_OUT] in bfloat16, of x's row slot // SLOTS_PER_ROW.

    IS_UP: silu(gate) * up, with weight [E, 2 * NUM_OUT, SIZE], and where TILE is 128 as FP8 codes
    with scales [slots, NUM_OUT / 128]; otherwise share[slot] times the product with weight
    [E, NUM_OUT, SIZE]. x and weight are FP8 codes. SIZE is a multiple of 128, and TILE weight rows
    have one scale row. A tile (groups.py) is of ROWS slots, an expert's last of REST (0, 32) more.
    """
    expert = tl.load(tile_expert_ptr + tl.program_id(1))
    if expert < 0:
        return
    first = tl.load(tile_first_ptr + tl.program_id(1))
    count = tl.load(counts_ptr + expert)
    left = count - first
    if (REST > 0) & (left > ROWS) & (left <= ROWS + REST):
        _tile(
            x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr,
            out_scale_ptr, slots_ptr, expert, first, count, num_tokens, num_scale_rows,
            SLOTS_PER_ROW, SIZE, NUM_OUT, IS_UP, ROWS, REST, TILE,
        )  # fmt: skip
    elif left > ROWS // 2:
        _tile(
            x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr,
            out_scale_ptr, slots_ptr, expert, first, count, num_tokens, num_scale_rows,
            SLOTS_PER_ROW, SIZE, NUM_OUT, IS_UP, ROWS, 0, TILE,
        )  # fmt: skip
    elif left > _SHORT:
        _tile(
            x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr,
            out_scale_ptr, slots_ptr, expert, first, count, num_tokens, num_scale_rows,
            SLOTS_PER_ROW, SIZE, NUM_OUT, IS_UP, ROWS // 2, 0, TILE,
        )  # fmt: skip
    else:
        _tile(
            x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr,
            out_scale_ptr, slots_ptr, expert, first, count, num_tokens, num_scale_rows,
            SLOTS_PER_ROW, SIZE, NUM_OUT, IS_UP, 0, _SHORT, TILE,
        )  # fmt: skip


@triton.jit
def _slots(places, slots_ptr, expert, count, num_tokens):
    """(slots, which of them there are) at some places among an expert's slots."""
    has_slot = places < count
    slots = tl.load(slots_ptr + expert.to(tl.int64) * num_tokens + places, mask=has_slot, other=0)
    return slots, has_slot


@triton.jit
def _tile(
    x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr, out_scale_ptr,
    slots_ptr, expert, first, count, num_tokens, num_scale_rows, SLOTS_PER_ROW: tl.constexpr,
    SIZE: tl.constexpr, NUM_OUT: tl.constexpr, IS_UP: tl.constexpr, ROWS: tl.constexpr,
    REST: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """ROWS slots from `first` on with the tokens as the long side, REST after them the other way;
    either may be 0."""
    NUM_BLOCKS: tl.constexpr = SIZE // _BLOCK
    SECOND: tl.constexpr = NUM_OUT if IS_UP else TILE
    columns = tl.arange(0, _BLOCK)
    column = tl.program_id(0) * (TILE if IS_UP else 2 * TILE)
    weight_rows = column + tl.arange(0, TILE)
    own = weight_ptr + expert.to(tl.int64) * ((2 * NUM_OUT if IS_UP else NUM_OUT) * SIZE)
    weights = own + weight_rows[None, :] * SIZE + columns[:, None]
    scales = scale_ptr + expert.to(tl.int64) * num_scale_rows * NUM_BLOCKS
    a_scales = scales + tl.load(scale_row_ptr + column) * NUM_BLOCKS
    b_scales = scales + tl.load(scale_row_ptr + column + SECOND) * NUM_BLOCKS
    if ROWS > 0:
        slots, has_slot = _slots(first + tl.arange(0, ROWS), slots_ptr, expert, count, num_tokens)
        places = (slots // SLOTS_PER_ROW).to(tl.int64)
        inputs = x_ptr + places[:, None] * SIZE + columns[None, :]
        x_scales = x_scale_ptr + places * NUM_BLOCKS
        a = tl.zeros((ROWS, TILE), tl.float32)
        b = tl.zeros((ROWS, TILE), tl.float32)
    if REST > 0:
        beyond = first + ROWS + tl.arange(0, REST)
        rest_slots, has_rest = _slots(beyond, slots_ptr, expert, count, num_tokens)
        rest_places = (rest_slots // SLOTS_PER_ROW).to(tl.int64)
        rest_inputs = x_ptr + rest_places[None, :] * SIZE + columns[:, None]
        rest_scales = x_scale_ptr + rest_places * NUM_BLOCKS
        rest_a = tl.zeros((TILE, REST), tl.float32)
        rest_b = tl.zeros((TILE, REST), tl.float32)
    for block in range(NUM_BLOCKS):
        if ROWS > 0:
            x = tl.load(inputs + block * _BLOCK, mask=has_slot[:, None], other=0.0)
        w_a = tl.load(weights + block * _BLOCK)
        w_b = tl.load(weights + SECOND * SIZE + block * _BLOCK)
        s_a, s_b = tl.load(a_scales + block), tl.load(b_scales + block)
        if ROWS > 0:
            x_scale = tl.load(x_scales + block)
            a += tl.dot(x, w_a) * (x_scale * s_a)[:, None]
            b += tl.dot(x, w_b) * (x_scale * s_b)[:, None]
        if REST > 0:
            rest = tl.load(rest_inputs + block * _BLOCK, mask=has_rest[None, :], other=0.0)
            rest_scale = tl.load(rest_scales + block)
            rest_a += tl.dot(tl.trans(w_a), rest) * (rest_scale * s_a)[None, :]
            rest_b += tl.dot(tl.trans(w_b), rest) * (rest_scale * s_b)[None, :]
    if ROWS > 0:
        if IS_UP:
            _store_inner(
                activated(a, b, tl.bfloat16), out_ptr, out_scale_ptr, slots, has_slot, column,
                NUM_OUT, TILE,
            )  # fmt: skip
        else:
            _store_shared(a, b, share_ptr, out_ptr, slots, has_slot, column, NUM_OUT, TILE)
    if REST > 0:
        if IS_UP:
            inner = tl.trans(activated(rest_a, rest_b, tl.bfloat16))
            _store_inner(inner, out_ptr, out_scale_ptr, rest_slots, has_rest, column, NUM_OUT, TILE)
        else:
            _store_shared(
                tl.trans(rest_a), tl.trans(rest_b), share_ptr, out_ptr, rest_slots, has_rest,
                column, NUM_OUT, TILE,
            )  # fmt: skip


@triton.jit
def _store_inner(
    inner, out_ptr, out_scale_ptr, slots, has_slot, column, NUM_OUT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """inner [slots, TILE] from `column` on, which a whole block can be made FP8 of."""
    places = slots.to(tl.int64)
    outputs = out_ptr + places[:, None] * NUM_OUT + (column + tl.arange(0, TILE))[None, :]
    if TILE == _BLOCK:
        codes, scale = quantised(inner.to(tl.float32))
        tl.store(outputs, codes, mask=has_slot[:, None])
        scales = out_scale_ptr + places * (NUM_OUT // _BLOCK) + tl.program_id(0)
        tl.store(scales, scale, mask=has_slot)
    else:
        tl.store(outputs, inner, mask=has_slot[:, None])


@triton.jit
def _store_shared(
    a, b, share_ptr, out_ptr, slots, has_slot, column, NUM_OUT: tl.constexpr, TILE: tl.constexpr
):
    """a and b [slots, TILE] from `column` on, times the router's weight of their slot."""
    share = tl.load(share_ptr + slots, mask=has_slot, other=0.0)[:, None]
    columns = (column + tl.arange(0, TILE))[None, :]
    outputs = out_ptr + slots.to(tl.int64)[:, None] * NUM_OUT + columns
    tl.store(outputs, (a * share).to(tl.bfloat16), mask=has_slot[:, None])
    tl.store(outputs + TILE, (b * share).to(tl.bfloat16), mask=has_slot[:, None])
