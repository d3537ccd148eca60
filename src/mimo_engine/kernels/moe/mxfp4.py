"""Experts with MXFP4 weights: few instructions a byte, or the memory would wait for them.

The weights come packed (quant/mxfp4_layout.py), for activations of one kind: bfloat16, or FP8 per
row and 128 columns. A word of eight codes becomes eight values for the tensor cores in 9 or 16
instructions: FP8 codes looked up with PRMT in a table that the group's exponent was added to, or
bfloat16 cut out by masks and multiplied by the group's power of two. Products are exact, since
e2m1 times a power of two is exact in both; one power of two per row ends the sum.

The kernels are those of triton.py, a tile of slots by a tile of one expert's rows, with few tokens
the rows as the long side. A step takes 256 columns: one byte holds a value of the first half and
one of the second, and each half is a product of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from mimo_engine.kernels.activation.triton import activated
from mimo_engine.kernels.linear.triton import quantise_rows
from mimo_engine.kernels.moe.groups import Tiles, make_tiles
from mimo_engine.kernels.moe.triton import tile_slots
from mimo_engine.kernels.quant import FP8_BLOCK
from mimo_engine.kernels.quant.mxfp4 import HAS_ASSEMBLY, decoded
from mimo_engine.kernels.quant.mxfp4_layout import MXFP4_BLOCK, Activations, PackedMxfp4

__all__ = ["experts"]

_BLOCK = tl.constexpr(MXFP4_BLOCK)
_HALF = tl.constexpr(FP8_BLOCK)


@triton.jit
def _weight_rows(tile, NUM_OUT: tl.constexpr, IS_UP: tl.constexpr, TILE: tl.constexpr):
    """The TILE rows of a tile: if IS_UP, half of them gates and then their ups, NUM_OUT below.

    Rows beyond the end read the last one, which is cheaper than a mask in every step.
    """
    row = tl.arange(0, TILE)
    if IS_UP:
        HALF: tl.constexpr = TILE // 2
        rows = tl.minimum(tile * HALF + row % HALF, NUM_OUT - 1) + row // HALF * NUM_OUT
    else:
        rows = tl.minimum(tile * TILE + row, NUM_OUT - 1)
    return rows


@triton.jit
def _row_scales(scale_ptr, rows):
    """What the sums of some rows are multiplied with, float32."""
    return (tl.load(scale_ptr + rows).to(tl.int32) << 23).to(tl.float32, bitcast=True)


@triton.jit
def _few_sums(
    x_ptr,
    x_scale_ptr,
    data_ptr,
    exponent_ptr,
    rows,
    places,
    has_slot,
    SIZE: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_ASM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """[TILE, ROWS] float32: of some rows of one expert's weight with the inputs at some places."""
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    NUM_SCALES: tl.constexpr = (SIZE + _HALF - 1) // _HALF
    columns = tl.arange(0, _HALF)
    inputs = x_ptr + places[:, None] * SIZE + columns[None, :]
    x_scales = x_scale_ptr + places * NUM_SCALES
    weights = data_ptr + rows[:, None] * (NUM_BLOCKS * _HALF) + columns[None, :]
    total = tl.zeros((TILE, ROWS), tl.float32)
    for block in range(NUM_BLOCKS):
        data = tl.load(weights + block * _HALF, eviction_policy="evict_first")
        exponent = tl.load(exponent_ptr + block * NUM_ROWS + rows)
        # A half is decoded after the other's product, so that one buffer serves both.
        for half in tl.static_range(2):
            start = block * _BLOCK + half * _HALF
            mask = has_slot[:, None]
            if NUM_BLOCKS * _BLOCK != SIZE:
                mask = mask & (columns + start < SIZE)[None, :]
            x = tl.load(inputs + start, mask=mask, other=0.0)
            w = decoded(data, exponent, half, TILE, IS_FP8, IS_ASM)
            if IS_FP8:
                has_scale = has_slot & (2 * block + half < NUM_SCALES)
                x_scale = tl.load(x_scales + 2 * block + half, mask=has_scale, other=0.0)
                total += tl.dot(w, tl.trans(x)) * x_scale[None, :]
            else:
                total = tl.dot(w, tl.trans(x), total)
    return total


@triton.jit(do_not_specialize=["num_tokens"])
def _few(
    x_ptr,
    x_scale_ptr,
    data_ptr,
    exponent_ptr,
    scale_ptr,
    share_ptr,
    out_ptr,
    chosen_ptr,
    tile_expert_ptr,
    tile_first_ptr,
    counts_ptr,
    slots_ptr,
    num_tokens,
    SLOTS_PER_INPUT: tl.constexpr,
    SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_UP: tl.constexpr,
    IS_GROUPED: tl.constexpr,
    IS_ASM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """A tile of an expert's rows by ROWS slots: out[slot, :] = silu(gate) * up if IS_UP, else
    share[slot] * y. IS_FP8: x is codes with scales."""
    NUM_ROWS: tl.constexpr = 2 * NUM_OUT if IS_UP else NUM_OUT
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    expert, slots, has_slot = tile_slots(
        tl.program_id(1), chosen_ptr, tile_expert_ptr, tile_first_ptr, counts_ptr, slots_ptr,
        num_tokens, ROWS, IS_GROUPED,
    )  # fmt: skip
    if expert < 0:
        return
    own = expert.to(tl.int64) * NUM_ROWS
    rows = _weight_rows(tl.program_id(0), NUM_OUT, IS_UP, TILE)
    total = _few_sums(
        x_ptr, x_scale_ptr, data_ptr + own * (NUM_BLOCKS * _HALF), exponent_ptr + own * NUM_BLOCKS,
        rows, (slots // SLOTS_PER_INPUT).to(tl.int64), has_slot,
        SIZE, NUM_ROWS, IS_FP8, IS_ASM, ROWS, TILE,
    )  # fmt: skip
    total *= _row_scales(scale_ptr + own, rows)[:, None]
    if IS_UP:
        _store_inner(out_ptr, total, slots, has_slot, NUM_OUT, ROWS, TILE)
    else:
        out_columns = tl.program_id(0) * TILE + tl.arange(0, TILE)
        share = tl.load(share_ptr + slots, mask=has_slot, other=0.0)
        tl.store(
            out_ptr + slots.to(tl.int64)[:, None] * NUM_OUT + out_columns[None, :],
            tl.trans(total) * share[:, None],
            mask=has_slot[:, None] & (out_columns < NUM_OUT)[None, :],
        )


@triton.jit
def _store_inner(
    out_ptr,
    total,
    slots,
    has_slot,
    NUM_OUT: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """The inner activation of total [TILE, ROWS], gates above ups."""
    WIDTH: tl.constexpr = TILE // 2
    gate, up = tl.split(tl.permute(tl.reshape(total, (2, WIDTH, ROWS)), (2, 1, 0)))
    h = activated(gate, up, tl.bfloat16)
    out_columns = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    mask = has_slot[:, None] & (out_columns < NUM_OUT)[None, :]
    tl.store(out_ptr + slots.to(tl.int64)[:, None] * NUM_OUT + out_columns[None, :], h, mask=mask)


@triton.jit
def _many_sums(
    x_ptr,
    x_scale_ptr,
    data_ptr,
    exponent_ptr,
    rows,
    places,
    SIZE: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_ASM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """[ROWS, TILE] float32: of the inputs at some places with some rows of one expert's weight."""
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    NUM_SCALES: tl.constexpr = (SIZE + _HALF - 1) // _HALF
    columns = tl.arange(0, _HALF)
    inputs = x_ptr + places[:, None] * SIZE + columns[None, :]
    x_scales = x_scale_ptr + places * NUM_SCALES
    weights = data_ptr + rows[:, None] * (NUM_BLOCKS * _HALF) + columns[None, :]
    total = tl.zeros((ROWS, TILE), tl.float32)
    for block in range(NUM_BLOCKS):
        data = tl.load(weights + block * _HALF)
        exponent = tl.load(exponent_ptr + block * NUM_ROWS + rows)
        first = tl.trans(decoded(data, exponent, 0, TILE, IS_FP8, IS_ASM))
        start = block * _BLOCK
        if NUM_BLOCKS * _BLOCK == SIZE:
            x_first = tl.load(inputs + start)
            x_second = tl.load(inputs + start + _HALF)
        else:
            inside = (columns + start < SIZE)[None, :]
            x_first = tl.load(inputs + start, mask=inside, other=0.0)
            inside = (columns + start + _HALF < SIZE)[None, :]
            x_second = tl.load(inputs + start + _HALF, mask=inside, other=0.0)
        if IS_FP8:
            # Before the first product, in a buffer of its own: registers are scarcer.
            second = tl.trans(decoded(data, exponent, 1, TILE, IS_FP8, IS_ASM))
            # Beyond the last scale everything is 0, whatever the scale.
            last = tl.minimum(2 * block + 1, NUM_SCALES - 1)
            total += tl.dot(x_first, first) * tl.load(x_scales + 2 * block)[:, None]
            total += tl.dot(x_second, second) * tl.load(x_scales + last)[:, None]
        else:
            total = tl.dot(x_first, first, total)
            second = tl.trans(decoded(data, exponent, 1, TILE, IS_FP8, IS_ASM))
            total = tl.dot(x_second, second, total)
    return total


@triton.jit(do_not_specialize=["num_tokens"])
def _many(
    x_ptr,
    x_scale_ptr,
    data_ptr,
    exponent_ptr,
    scale_ptr,
    share_ptr,
    out_ptr,
    tile_expert_ptr,
    tile_first_ptr,
    counts_ptr,
    slots_ptr,
    num_tokens,
    SLOTS_PER_INPUT: tl.constexpr,
    SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_UP: tl.constexpr,
    IS_ASM: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """As `_few`, of FP8 with scales or of bfloat16, the slots as the long side."""
    NUM_ROWS: tl.constexpr = 2 * NUM_OUT if IS_UP else NUM_OUT
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    WIDTH: tl.constexpr = TILE // 2 if IS_UP else TILE
    expert, slots, _ = tile_slots(
        tl.program_id(1), counts_ptr, tile_expert_ptr, tile_first_ptr, counts_ptr, slots_ptr,
        num_tokens, ROWS, True,
    )  # fmt: skip
    if expert < 0:
        return
    own = expert.to(tl.int64) * NUM_ROWS
    total = _many_sums(
        x_ptr, x_scale_ptr, data_ptr + own * (NUM_BLOCKS * _HALF), exponent_ptr + own * NUM_BLOCKS,
        _weight_rows(tl.program_id(0), NUM_OUT, IS_UP, TILE),
        (slots // SLOTS_PER_INPUT).to(tl.int64),
        SIZE, NUM_ROWS, IS_FP8, IS_ASM, ROWS, TILE,
    )  # fmt: skip
    # Found again, not kept: registers are scarce in the loop.
    expert, slots, has_slot = tile_slots(
        tl.program_id(1), counts_ptr, tile_expert_ptr, tile_first_ptr, counts_ptr, slots_ptr,
        num_tokens, ROWS, True,
    )  # fmt: skip
    rows = _weight_rows(tl.program_id(0), NUM_OUT, IS_UP, TILE)
    total *= _row_scales(scale_ptr + expert.to(tl.int64) * NUM_ROWS, rows)[None, :]
    if IS_UP:
        gate, up = tl.split(tl.permute(tl.reshape(total, (ROWS, 2, WIDTH)), (0, 2, 1)))
        total = activated(gate, up, out_ptr.dtype.element_ty)
    else:
        total *= tl.load(share_ptr + slots, mask=has_slot, other=0.0)[:, None]
    columns = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    outputs = out_ptr + slots.to(tl.int64)[:, None] * NUM_OUT + columns[None, :]
    mask = has_slot[:, None] & (columns < NUM_OUT)[None, :]
    tl.store(outputs, total.to(out_ptr.dtype.element_ty), mask=mask)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Weight rows and warps of a program, and from how many programs on it is worth it, since fewer
    leave a part of the GPU idle."""

    tile: int
    num_warps: int
    min_programs: int = 0


_MAX_UNGROUPED_TOKENS = 4
_MAX_FEW_SLOTS: dict[Activations, int] = {"fp8": 16, "bf16": 32}
"""Of an expert on average. With more, tiles of 64 slots take less time than their weights would,
decoded for every 16 slots again."""
_FEW_ROWS = 16
_FEW_SHAPES = (_Shape(128, 4, 240), _Shape(64, 4))
_FEW_STAGES = 3
_MANY_ROWS, _MANY_TILE, _MANY_WARPS = 64, 128, 4
_MANY_STAGES = 2
"""So that a multiprocessor has room for two programs: one decodes while the other multiplies."""


def experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: PackedMxfp4,
    down: PackedMxfp4,
) -> torch.Tensor:
    """See the package: a part for each of a token's experts. x bfloat16, chosen [N, top_k] int32.

    What the weights were packed for decides whether activations are quantised, x and the inner one
    alike, at every number of tokens.
    """
    assert x.is_contiguous()
    assert weights.is_contiguous()
    assert weights.dtype is torch.float32
    assert x.dtype is torch.bfloat16
    assert gate_up.activations == down.activations
    assert gate_up.shape[-1] == down.shape[-2] == x.shape[1]
    if chosen.numel() <= _MAX_FEW_SLOTS[gate_up.activations] * gate_up.shape[0]:
        return _few_tokens(x, chosen, weights, gate_up, down)
    return _many_tokens(x, chosen, weights, gate_up, down)


def _few_tokens(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: PackedMxfp4,
    down: PackedMxfp4,
) -> torch.Tensor:
    num_tokens, size = x.shape
    num_experts, num_rows, _ = gate_up.shape
    width, top_k, num_slots = num_rows // 2, chosen.shape[1], chosen.numel()
    is_fp8, device = gate_up.activations == "fp8", x.device
    is_grouped = num_tokens > _MAX_UNGROUPED_TOKENS
    tiles = make_tiles(chosen, num_experts, _FEW_ROWS) if is_grouped else None
    num_tiles = num_slots if tiles is None else tiles.num_tiles
    places = _places(chosen, tiles)
    h = torch.empty(num_slots, width, dtype=x.dtype, device=device)
    out = torch.empty(num_tokens, top_k, size, dtype=torch.float32, device=device)
    shape = _shape(_FEW_SHAPES, num_rows, num_tiles)
    # For every tile again it would take more instructions than to decode the weights.
    values, scales = quantise_rows(x) if is_fp8 else (x, x)
    _few[(triton.cdiv(num_rows, shape.tile), num_tiles)](
        values, scales, *_pieces(gate_up), weights, h, *places, num_tokens,
        SLOTS_PER_INPUT=top_k, SIZE=size, NUM_OUT=width, IS_FP8=is_fp8, IS_UP=True,
        IS_GROUPED=is_grouped, IS_ASM=HAS_ASSEMBLY, ROWS=_FEW_ROWS, TILE=shape.tile,
        num_warps=shape.num_warps, num_stages=_FEW_STAGES,
    )  # fmt: skip
    shape = _shape(_FEW_SHAPES, size, num_tiles)
    values, scales = quantise_rows(h) if is_fp8 else (h, h)
    _few[(triton.cdiv(size, shape.tile), num_tiles)](
        values, scales, *_pieces(down), weights, out, *places, num_tokens, SLOTS_PER_INPUT=1,
        SIZE=width, NUM_OUT=size, IS_FP8=is_fp8, IS_UP=False, IS_GROUPED=is_grouped,
        IS_ASM=HAS_ASSEMBLY, ROWS=_FEW_ROWS, TILE=shape.tile,
        num_warps=shape.num_warps, num_stages=_FEW_STAGES,
    )  # fmt: skip
    return out


def _many_tokens(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: PackedMxfp4,
    down: PackedMxfp4,
) -> torch.Tensor:
    num_tokens, size = x.shape
    num_experts, num_rows, _ = gate_up.shape
    width, top_k = num_rows // 2, chosen.shape[1]
    is_fp8 = gate_up.activations == "fp8"
    tiles = make_tiles(chosen, num_experts, _MANY_ROWS)
    places = _places(chosen, tiles)[1:]
    h = torch.empty(chosen.numel(), width, dtype=x.dtype, device=x.device)
    out = torch.empty(num_tokens, top_k, size, dtype=x.dtype, device=x.device)
    values, scales = quantise_rows(x) if is_fp8 else (x, x)
    _many[(triton.cdiv(num_rows, _MANY_TILE), tiles.num_tiles)](
        values, scales, *_pieces(gate_up), weights, h, *places, num_tokens,
        SLOTS_PER_INPUT=top_k, SIZE=size, NUM_OUT=width, IS_FP8=is_fp8, IS_UP=True,
        IS_ASM=HAS_ASSEMBLY, ROWS=_MANY_ROWS, TILE=_MANY_TILE, num_warps=_MANY_WARPS,
        num_stages=_MANY_STAGES,
    )  # fmt: skip
    values, scales = quantise_rows(h) if is_fp8 else (h, h)
    _many[(triton.cdiv(size, _MANY_TILE), tiles.num_tiles)](
        values, scales, *_pieces(down), weights, out, *places, num_tokens,
        SLOTS_PER_INPUT=1, SIZE=width, NUM_OUT=size, IS_FP8=is_fp8, IS_UP=False,
        IS_ASM=HAS_ASSEMBLY, ROWS=_MANY_ROWS, TILE=_MANY_TILE, num_warps=_MANY_WARPS,
        num_stages=_MANY_STAGES,
    )  # fmt: skip
    return out


def _shape(candidates: Sequence[_Shape], num_rows: int, num_tiles: int) -> _Shape:
    """The first that makes programs enough; the last one has to do."""
    for shape in candidates:
        if triton.cdiv(num_rows, shape.tile) * num_tiles >= shape.min_programs:
            return shape
    return candidates[-1]


def _pieces(weight: PackedMxfp4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(data, exponents with eight bytes in one integer, scales)."""
    assert weight.data.is_contiguous()
    assert weight.exponents.is_contiguous()
    assert weight.scales.is_contiguous()
    return weight.data, weight.exponents.view(torch.int64), weight.scales


def _places(chosen: torch.Tensor, tiles: Tiles | None) -> tuple[torch.Tensor, ...]:
    """What `tile_slots` reads; without tiles, of the last four nothing is."""
    if tiles is None:
        return (chosen,) * 5
    return (chosen, tiles.expert, tiles.first, tiles.counts, tiles.slots)
