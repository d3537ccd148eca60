"""Experts with many tokens: tiles of ROWS slots by TILE weight rows, in two kernels.

An expert's last tile is rarely full: where half of the rows or fewer are left, half the tile is
computed. FP8 activations are made once before, and those between the kernels where they arise.
"""

# What is there in one form of a kernel alone is bound under its constant.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.activation.triton import activated
from mimo_engine.kernels.quant import FP8_BLOCK
from mimo_engine.kernels.quant.triton import quantised

__all__ = ["down_many", "up_many"]

_BLOCK = tl.constexpr(FP8_BLOCK)


@triton.jit
def _outer(x_scale, w_scale, IS_UNIFORM: tl.constexpr):
    """What a tile of products is multiplied with; w_scale is a scalar if IS_UNIFORM."""
    if IS_UNIFORM:
        scale = (x_scale * w_scale)[:, None]
    else:
        scale = x_scale[:, None] * w_scale[None, :]
    return scale


@triton.jit
def _slots(places, slots_ptr, expert, count, num_tokens):
    """(slots, which of them there are) at some places among an expert's slots."""
    has_slot = places < count
    slots = tl.load(slots_ptr + expert.to(tl.int64) * num_tokens + places, mask=has_slot, other=0)
    return slots, has_slot


@triton.jit(do_not_specialize=["num_tokens"])
def up_many(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    out_ptr,
    out_scale_ptr,
    tile_expert_ptr,
    tile_first_ptr,
    counts_ptr,
    slots_ptr,
    num_tokens,
    num_scale_rows,
    TOP_K: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_UNIFORM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """silu(gate) * up of ROWS slots and TILE columns; weight [E, 2 * WIDTH, SIZE].

    IS_FP8: x [N, SIZE] and the result [slots, WIDTH] are codes with scales, and TILE is 128;
    otherwise both are what they are. IS_UNIFORM: TILE gate rows have one scale row, as have ups.
    """
    expert = tl.load(tile_expert_ptr + tl.program_id(1))
    if expert < 0:
        return
    first = tl.load(tile_first_ptr + tl.program_id(1))
    count = tl.load(counts_ptr + expert)
    if count - first > ROWS // 2:
        _up_tile(
            x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, out_ptr, out_scale_ptr,
            slots_ptr, expert, first, count, num_tokens, num_scale_rows, TOP_K, SIZE, WIDTH,
            IS_FP8, IS_UNIFORM, ROWS, TILE,
        )  # fmt: skip
    else:
        _up_tile(
            x_ptr, x_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, out_ptr, out_scale_ptr,
            slots_ptr, expert, first, count, num_tokens, num_scale_rows, TOP_K, SIZE, WIDTH,
            IS_FP8, IS_UNIFORM, ROWS // 2, TILE,
        )  # fmt: skip


@triton.jit
def _up_tile(
    x_ptr,
    x_scale_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    out_ptr,
    out_scale_ptr,
    slots_ptr,
    expert,
    first,
    count,
    num_tokens,
    num_scale_rows,
    TOP_K: tl.constexpr,
    SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_UNIFORM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    OUT_BLOCKS: tl.constexpr = (WIDTH + _BLOCK - 1) // _BLOCK
    slots, has_slot = _slots(first + tl.arange(0, ROWS), slots_ptr, expert, count, num_tokens)
    first_column = tl.program_id(0) * TILE
    out_columns = first_column + tl.arange(0, TILE)
    has_out = out_columns < WIDTH
    w_rows = tl.minimum(out_columns, WIDTH - 1)
    columns = tl.arange(0, _BLOCK)
    places = (slots // TOP_K).to(tl.int64)
    inputs = x_ptr + places[:, None] * SIZE + columns[None, :]
    own = weight_ptr + expert.to(tl.int64) * (2 * WIDTH * SIZE)
    gates = own + w_rows[None, :] * SIZE + columns[:, None]
    if IS_FP8:
        x_scales = x_scale_ptr + places * NUM_BLOCKS
        scales = scale_ptr + expert.to(tl.int64) * num_scale_rows * NUM_BLOCKS
        scale_rows = first_column if IS_UNIFORM else w_rows
        gate_scales = scales + tl.load(scale_row_ptr + scale_rows) * NUM_BLOCKS
        up_scales = scales + tl.load(scale_row_ptr + WIDTH + scale_rows) * NUM_BLOCKS
    gate = tl.zeros((ROWS, TILE), tl.float32)
    up = tl.zeros((ROWS, TILE), tl.float32)
    for block in range(NUM_BLOCKS):
        if NUM_BLOCKS * _BLOCK == SIZE:
            x = tl.load(inputs + block * _BLOCK)
            w_gate = tl.load(gates + block * _BLOCK)
            w_up = tl.load(gates + WIDTH * SIZE + block * _BLOCK)
        else:
            inside = columns + block * _BLOCK < SIZE
            x = tl.load(inputs + block * _BLOCK, mask=inside[None, :], other=0.0)
            w_gate = tl.load(gates + block * _BLOCK, mask=inside[:, None], other=0.0)
            w_up = tl.load(gates + WIDTH * SIZE + block * _BLOCK, mask=inside[:, None], other=0.0)
        if IS_FP8:
            x_scale = tl.load(x_scales + block)
            s_gate, s_up = tl.load(gate_scales + block), tl.load(up_scales + block)
            gate += tl.dot(x, w_gate) * _outer(x_scale, s_gate, IS_UNIFORM)
            up += tl.dot(x, w_up) * _outer(x_scale, s_up, IS_UNIFORM)
        else:
            gate = tl.dot(x, w_gate, gate)
            up = tl.dot(x, w_up, up)
    # Rounded to bfloat16 first, as the definition does.
    inner = activated(gate, up, tl.bfloat16)
    mask = has_slot[:, None] & has_out[None, :]
    outputs = out_ptr + slots.to(tl.int64)[:, None] * WIDTH + out_columns[None, :]
    if IS_FP8:
        codes, scale = quantised(tl.where(has_out[None, :], inner.to(tl.float32), 0.0))
        tl.store(outputs, codes, mask=mask)
        place = out_scale_ptr + slots.to(tl.int64) * OUT_BLOCKS + tl.program_id(0)
        tl.store(place, scale, mask=has_slot)
    else:
        tl.store(outputs, inner, mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def down_many(
    h_ptr,
    h_scale_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    share_ptr,
    out_ptr,
    tile_expert_ptr,
    tile_first_ptr,
    counts_ptr,
    slots_ptr,
    num_tokens,
    num_scale_rows,
    SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_UNIFORM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[slot, :] = share[slot] * (weight h[slot]); weight [E, NUM_OUT, SIZE]; h as `up_many`
    leaves it."""
    expert = tl.load(tile_expert_ptr + tl.program_id(1))
    if expert < 0:
        return
    first = tl.load(tile_first_ptr + tl.program_id(1))
    count = tl.load(counts_ptr + expert)
    if count - first > ROWS // 2:
        _down_tile(
            h_ptr, h_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr,
            slots_ptr, expert, first, count, num_tokens, num_scale_rows, SIZE, NUM_OUT, IS_FP8,
            IS_UNIFORM, ROWS, TILE,
        )  # fmt: skip
    else:
        _down_tile(
            h_ptr, h_scale_ptr, weight_ptr, scale_ptr, scale_row_ptr, share_ptr, out_ptr,
            slots_ptr, expert, first, count, num_tokens, num_scale_rows, SIZE, NUM_OUT, IS_FP8,
            IS_UNIFORM, ROWS // 2, TILE,
        )  # fmt: skip


@triton.jit
def _down_tile(
    h_ptr,
    h_scale_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    share_ptr,
    out_ptr,
    slots_ptr,
    expert,
    first,
    count,
    num_tokens,
    num_scale_rows,
    SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_UNIFORM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    slots, has_slot = _slots(first + tl.arange(0, ROWS), slots_ptr, expert, count, num_tokens)
    first_column = tl.program_id(0) * TILE
    out_columns = first_column + tl.arange(0, TILE)
    w_rows = tl.minimum(out_columns, NUM_OUT - 1)
    columns = tl.arange(0, _BLOCK)
    places = slots.to(tl.int64)
    inputs = h_ptr + places[:, None] * SIZE + columns[None, :]
    own = weight_ptr + expert.to(tl.int64) * (NUM_OUT * SIZE)
    weights = own + w_rows[None, :] * SIZE + columns[:, None]
    if IS_FP8:
        h_scales = h_scale_ptr + places * NUM_BLOCKS
        scales = scale_ptr + expert.to(tl.int64) * num_scale_rows * NUM_BLOCKS
        scale_rows = first_column if IS_UNIFORM else w_rows
        scales += tl.load(scale_row_ptr + scale_rows) * NUM_BLOCKS
    total = tl.zeros((ROWS, TILE), tl.float32)
    for block in range(NUM_BLOCKS):
        if NUM_BLOCKS * _BLOCK == SIZE:
            h = tl.load(inputs + block * _BLOCK)
            w = tl.load(weights + block * _BLOCK)
        else:
            inside = columns + block * _BLOCK < SIZE
            h = tl.load(inputs + block * _BLOCK, mask=inside[None, :], other=0.0)
            w = tl.load(weights + block * _BLOCK, mask=inside[:, None], other=0.0)
        if IS_FP8:
            scale = _outer(tl.load(h_scales + block), tl.load(scales + block), IS_UNIFORM)
            total += tl.dot(h, w) * scale
        else:
            total = tl.dot(h, w, total)
    share = tl.load(share_ptr + slots, mask=has_slot, other=0.0)
    tl.store(
        out_ptr + places[:, None] * NUM_OUT + out_columns[None, :],
        (total * share[:, None]).to(out_ptr.dtype.element_ty),
        mask=has_slot[:, None] & (out_columns < NUM_OUT)[None, :],
    )
