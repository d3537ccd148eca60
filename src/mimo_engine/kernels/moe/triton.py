"""Experts in two kernels: gate and up with the activation, then down with the token's weight.

A program has a tile of slots (groups.py) and a tile of one expert's rows. Up to a few tokens a slot
is a tile of its own and nothing has to be grouped: what two tokens share is read from the cache.
With few tokens the weights' rows are the long side of the product and activations are quantised
where they are read; many are many_tokens.py's.
"""

# What is there in one form of a kernel alone is bound under its constant.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mimo_engine.kernels.activation.triton import activated
from mimo_engine.kernels.moe.groups import Tiles, make_tiles
from mimo_engine.kernels.moe.many_tokens import Pieces, experts_many
from mimo_engine.kernels.quant import FP8_BLOCK, Weight
from mimo_engine.kernels.quant.triton import quantised

__all__ = ["experts", "tile_slots"]

_BLOCK = tl.constexpr(FP8_BLOCK)
_MAX_UNGROUPED_TOKENS = 4
_MAX_FEW_TOKENS = 256
"""About as many as give an expert eight tokens: beyond, tiles of 64 tokens are filled."""
_FEW_ROWS, _FEW_TILE = 16, 64


@triton.jit
def tile_slots(
    tile,
    chosen_ptr,
    tile_expert_ptr,
    tile_first_ptr,
    counts_ptr,
    slots_ptr,
    num_tokens,
    ROWS: tl.constexpr,
    IS_GROUPED: tl.constexpr,
):
    """(expert, slots [ROWS], which of them there are) of a tile; expert -1: none."""
    places = tl.arange(0, ROWS)
    if IS_GROUPED:
        expert = tl.load(tile_expert_ptr + tile)
        own = tl.maximum(expert, 0)
        places += tl.load(tile_first_ptr + tile)
        has_slot = places < tl.load(counts_ptr + own)
        slots = tl.load(slots_ptr + own.to(tl.int64) * num_tokens + places, mask=has_slot, other=0)
    else:
        expert = tl.load(chosen_ptr + tile)
        has_slot = places < 1
        slots = tl.where(has_slot, tile, 0)
    return expert, slots, has_slot


@triton.jit(do_not_specialize=["num_tokens"])
def _up_few(
    x_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    out_ptr,
    chosen_ptr,
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
    IS_GROUPED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[slot, :] = silu(gate) * up, of TILE columns; weight [E, 2 * WIDTH, SIZE]."""
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    expert, slots, has_slot = tile_slots(
        tl.program_id(1), chosen_ptr, tile_expert_ptr, tile_first_ptr, counts_ptr, slots_ptr,
        num_tokens, ROWS, IS_GROUPED,
    )  # fmt: skip
    if expert < 0:
        return
    out_columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    has_out = out_columns < WIDTH
    columns = tl.arange(0, _BLOCK)
    inputs = x_ptr + (slots // TOP_K).to(tl.int64)[:, None] * SIZE + columns[None, :]
    own = weight_ptr + expert.to(tl.int64) * (2 * WIDTH * SIZE)
    gates = own + out_columns[:, None] * SIZE + columns[None, :]
    if IS_FP8:
        scales = scale_ptr + expert.to(tl.int64) * num_scale_rows * NUM_BLOCKS
        gate_row = tl.load(scale_row_ptr + out_columns, mask=has_out, other=0)
        up_row = tl.load(scale_row_ptr + WIDTH + out_columns, mask=has_out, other=0)
        gate_scales, up_scales = scales + gate_row * NUM_BLOCKS, scales + up_row * NUM_BLOCKS
    gate = tl.zeros((TILE, ROWS), tl.float32)
    up = tl.zeros((TILE, ROWS), tl.float32)
    for block in range(NUM_BLOCKS):
        inside = columns[None, :] + block * _BLOCK < SIZE
        mask = has_out[:, None] & inside
        w_gate = tl.load(
            gates + block * _BLOCK, mask=mask, other=0.0, eviction_policy="evict_first"
        )
        w_up = tl.load(
            gates + WIDTH * SIZE + block * _BLOCK,
            mask=mask,
            other=0.0,
            eviction_policy="evict_first",
        )
        x = tl.load(inputs + block * _BLOCK, mask=has_slot[:, None] & inside, other=0.0)
        if IS_FP8:
            codes, x_scales = quantised(x.to(tl.float32))
            codes = tl.trans(codes)
            s_gate = tl.load(gate_scales + block, mask=has_out, other=0.0)
            s_up = tl.load(up_scales + block, mask=has_out, other=0.0)
            gate += tl.dot(w_gate, codes) * (s_gate[:, None] * x_scales[None, :])
            up += tl.dot(w_up, codes) * (s_up[:, None] * x_scales[None, :])
        else:
            x = tl.trans(x)
            gate = tl.dot(w_gate, x, gate)
            up = tl.dot(w_up, x, up)
    tl.store(
        out_ptr + slots.to(tl.int64)[None, :] * WIDTH + out_columns[:, None],
        activated(gate, up, out_ptr.dtype.element_ty),
        mask=has_out[:, None] & has_slot[None, :],
    )


@triton.jit(do_not_specialize=["num_tokens"])
def _down_few(
    h_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    share_ptr,
    out_ptr,
    chosen_ptr,
    tile_expert_ptr,
    tile_first_ptr,
    counts_ptr,
    slots_ptr,
    num_tokens,
    num_scale_rows,
    SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_GROUPED: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[slot, :] = share[slot] * (weight h[slot]); weight [E, NUM_OUT, SIZE]."""
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    expert, slots, has_slot = tile_slots(
        tl.program_id(1), chosen_ptr, tile_expert_ptr, tile_first_ptr, counts_ptr, slots_ptr,
        num_tokens, ROWS, IS_GROUPED,
    )  # fmt: skip
    if expert < 0:
        return
    out_columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
    has_out = out_columns < NUM_OUT
    columns = tl.arange(0, _BLOCK)
    inputs = h_ptr + slots.to(tl.int64)[:, None] * SIZE + columns[None, :]
    own = weight_ptr + expert.to(tl.int64) * (NUM_OUT * SIZE)
    weights = own + out_columns[:, None] * SIZE + columns[None, :]
    if IS_FP8:
        scales = scale_ptr + expert.to(tl.int64) * num_scale_rows * NUM_BLOCKS
        scales += tl.load(scale_row_ptr + out_columns, mask=has_out, other=0) * NUM_BLOCKS
    total = tl.zeros((TILE, ROWS), tl.float32)
    for block in range(NUM_BLOCKS):
        inside = columns[None, :] + block * _BLOCK < SIZE
        w = tl.load(
            weights + block * _BLOCK,
            mask=has_out[:, None] & inside,
            other=0.0,
            eviction_policy="evict_first",
        )
        h = tl.load(inputs + block * _BLOCK, mask=has_slot[:, None] & inside, other=0.0)
        if IS_FP8:
            codes, h_scales = quantised(h.to(tl.float32))
            s = tl.load(scales + block, mask=has_out, other=0.0)
            total += tl.dot(w, tl.trans(codes)) * (s[:, None] * h_scales[None, :])
        else:
            total = tl.dot(w, tl.trans(h), total)
    share = tl.load(share_ptr + slots, mask=has_slot, other=0.0)
    tl.store(
        out_ptr + slots.to(tl.int64)[None, :] * NUM_OUT + out_columns[:, None],
        total * share[None, :],
        mask=has_out[:, None] & has_slot[None, :],
    )


def experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
) -> torch.Tensor:
    """See the package: a part for each of a token's experts. chosen [N, top_k] int32."""
    assert x.is_contiguous()
    assert weights.is_contiguous()
    assert weights.dtype is torch.float32
    first, second = Pieces.of(gate_up), Pieces.of(down)
    if x.shape[0] <= _MAX_FEW_TOKENS:
        return _few(x, chosen, weights, first, second)
    return experts_many(x, chosen, weights, first, second)


def _few(
    x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, first: Pieces, second: Pieces
) -> torch.Tensor:
    num_tokens, size = x.shape
    num_experts, num_rows, _ = first.data.shape
    width, top_k = num_rows // 2, chosen.shape[1]
    is_grouped = num_tokens > _MAX_UNGROUPED_TOKENS
    tiles = make_tiles(chosen, num_experts, _FEW_ROWS) if is_grouped else None
    places = _places(chosen, tiles)
    num_tiles = chosen.numel() if tiles is None else tiles.num_tiles
    h = torch.empty(chosen.numel(), width, dtype=x.dtype, device=x.device)
    out = torch.empty(num_tokens, top_k, size, dtype=torch.float32, device=x.device)
    _up_few[(triton.cdiv(width, _FEW_TILE), num_tiles)](
        x, first.data, first.scales, first.scale_row, h, *places, num_tokens,
        first.num_scale_rows, TOP_K=top_k, SIZE=size, WIDTH=width, IS_FP8=first.is_fp8,
        IS_GROUPED=is_grouped, ROWS=_FEW_ROWS, TILE=_FEW_TILE, num_warps=4, num_stages=4,
    )  # fmt: skip
    _down_few[(triton.cdiv(size, _FEW_TILE), num_tiles)](
        h, second.data, second.scales, second.scale_row, weights, out, *places, num_tokens,
        second.num_scale_rows, SIZE=width, NUM_OUT=size, IS_FP8=second.is_fp8,
        IS_GROUPED=is_grouped, ROWS=_FEW_ROWS, TILE=_FEW_TILE, num_warps=4, num_stages=4,
    )  # fmt: skip
    return out


def _places(chosen: torch.Tensor, tiles: Tiles | None) -> tuple[torch.Tensor, ...]:
    """What `tile_slots` reads; without tiles, of the last four nothing is."""
    if tiles is None:
        return (chosen,) * 5
    return (chosen, tiles.expert, tiles.first, tiles.counts, tiles.slots)
