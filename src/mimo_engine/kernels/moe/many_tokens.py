"""Experts with many tokens: which kernel, cut how.

Either kernel of either product (many.py, paired.py) computes the same numbers. `SERVED` is what the
model runs; the others are candidates that `bench/tune_experts.py` times beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton

from mimo_engine.kernels.linear.triton import quantise_rows
from mimo_engine.kernels.moe.groups import Tiles, make_tiles, other_tiles
from mimo_engine.kernels.moe.many import down_many, up_many
from mimo_engine.kernels.moe.paired import SHORT, paired
from mimo_engine.kernels.quant import FP8_BLOCK, Fp8BlockWeight, Weight

__all__ = [
    "DOWN_TILINGS",
    "SERVED",
    "UP_TILINGS",
    "ManyPlan",
    "Pieces",
    "Tiling",
    "experts_many",
    "make_tiles_for",
    "multiply_down",
    "multiply_up",
]


@dataclass(frozen=True, slots=True)
class Pieces:
    """Of stacked weights [E, rows, columns]; scales of plain ones are not read."""

    data: torch.Tensor
    scales: torch.Tensor
    scale_row: torch.Tensor
    is_fp8: bool
    rows_per_scale: int

    @classmethod
    def of(cls, weight: Weight) -> Pieces:
        if isinstance(weight, Fp8BlockWeight):
            assert weight.data.is_contiguous()
            return cls(weight.data, weight.scales, weight.scale_row, True, weight.rows_per_scale)
        assert isinstance(weight, torch.Tensor)
        assert weight.is_contiguous()
        return cls(weight, weight, weight, False, 1)

    @property
    def num_scale_rows(self) -> int:
        return self.scales.shape[1]

    def is_uniform(self, tile: int, num_pieces: int) -> bool:
        """Whether aligned tiles of so many rows of each of equal pieces have one scale row."""
        return self.rows_per_scale >= tile and self.data.shape[1] // num_pieces % tile == 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiling:
    """How a product is cut."""

    is_paired: bool = False
    """By paired.py, for FP8 weights of its shapes; otherwise by many.py."""
    rows: int
    """Slots of a tile."""
    rest: int = 0
    """How many more an expert's last tile may have; of paired tiles alone."""
    tile: int
    """Weight rows of a tile: of gate and of up; of each of a pair."""
    num_warps: int = 8
    num_stages: int
    max_registers: int | None = None

    def fits(self, weight: Pieces, num_pieces: int) -> bool:
        """num_pieces: 2 where `weight` is gate and up."""
        if not self.is_paired:
            return True
        width = 2 * self.tile // num_pieces
        return (
            weight.is_fp8
            and weight.is_uniform(self.tile, num_pieces)
            and weight.data.shape[1] // num_pieces % width == 0
            and weight.data.shape[2] % FP8_BLOCK == 0
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class ManyPlan:
    """How both products are cut, where the weights have the shapes for it."""

    up: Tiling
    down: Tiling


# Not measured yet but for those of SERVED. What speaks for the others: docs/log.md, 2026-11-26.
_WIDE_PAIR = Tiling(is_paired=True, rows=128, tile=128, num_warps=16, num_stages=4)
"""Half the sums a thread: none spilled, and four warp groups take turns."""
_TWO_AT_ONCE = Tiling(is_paired=True, rows=128, tile=64, num_stages=3, max_registers=128)
"""Registers and shared memory for two programs a multiprocessor."""
_THREE_AT_ONCE = Tiling(is_paired=True, rows=64, tile=64, num_warps=4, num_stages=3)
_PAIRS = {
    "wide pair": _WIDE_PAIR,
    "two at once": _TWO_AT_ONCE,
    "three at once": _THREE_AT_ONCE,
    # An expert of up to 160 tokens reads its weights once.
    **{
        f"rest inside, {stages} stages": Tiling(
            is_paired=True, rows=128, rest=SHORT, tile=64, num_stages=stages
        )
        for stages in (4, 5, 6)
    },
}

UP_TILINGS: Mapping[str, Tiling] = {
    "wide": Tiling(rows=128, tile=128, num_stages=3),
    "wide, 4 stages": Tiling(rows=128, tile=128, num_stages=4),
    "wide, 16 warps": Tiling(rows=128, tile=128, num_warps=16, num_stages=4),
    **_PAIRS,
}
DOWN_TILINGS: Mapping[str, Tiling] = {
    "wide": Tiling(rows=64, tile=128, num_stages=4),
    "wide, 128 rows": Tiling(rows=128, tile=128, num_stages=6),
    **_PAIRS,
}
SERVED = ManyPlan(up=UP_TILINGS["wide"], down=DOWN_TILINGS["wide"])


def experts_many(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    first: Pieces,
    second: Pieces,
    plan: ManyPlan = SERVED,
) -> torch.Tensor:
    """As `experts` of the package; first and second: gate_up and down."""
    assert first.is_fp8 == second.is_fp8
    up = plan.up if plan.up.fits(first, 2) else SERVED.up
    down = plan.down if plan.down.fits(second, 1) else SERVED.down
    tiles = make_tiles_for(up, chosen, first.data.shape[0])
    values, scales = quantise_rows(x) if first.is_fp8 else (x, x)
    h, h_scales = multiply_up(values, scales, first, tiles, chosen.shape[1], up)
    if (up.rows, up.rest) != (down.rows, down.rest):
        tiles = other_tiles(tiles, chosen.numel(), down.rows, down.rest)
    return multiply_down(h, h_scales, second, tiles, weights, down)


def make_tiles_for(tiling: Tiling, chosen: torch.Tensor, num_experts: int) -> Tiles:
    return make_tiles(chosen, num_experts, tiling.rows, tiling.rest)


def multiply_up(
    values: torch.Tensor,
    scales: torch.Tensor,
    weight: Pieces,
    tiles: Tiles,
    top_k: int,
    tiling: Tiling,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(silu(gate) * up of every slot [N * top_k, WIDTH], its scales), in FP8 if the weights are:
    then `values` [N, SIZE] are codes, with `scales`."""
    num_tokens, size = values.shape
    num_slots, width = num_tokens * top_k, weight.data.shape[1] // 2
    device, places = values.device, (tiles.expert, tiles.first, tiles.counts, tiles.slots)
    grid = (triton.cdiv(width, tiling.tile), tiles.num_tiles)
    # Scales of FP8 are made in the kernel where a tile has a whole block of columns.
    is_made = weight.is_fp8 and tiling.tile == FP8_BLOCK
    dtype = torch.float8_e4m3fn if is_made else torch.bfloat16
    h = h_scales = torch.empty(num_slots, width, dtype=dtype, device=device)
    if is_made:
        num_blocks = triton.cdiv(width, FP8_BLOCK)
        h_scales = torch.empty(num_slots, num_blocks, dtype=torch.float32, device=device)
    operands = (values, scales, weight.data, weight.scales, weight.scale_row)
    if tiling.is_paired:
        paired[grid](
            *operands, scales, h, h_scales, *places, num_tokens, weight.num_scale_rows,
            SLOTS_PER_ROW=top_k, SIZE=size, NUM_OUT=width, IS_UP=True, **_constants(tiling),
        )  # fmt: skip
        return (h, h_scales) if is_made else quantise_rows(h)
    assert is_made or not weight.is_fp8
    up_many[grid](
        *operands, h, h_scales, *places, num_tokens, weight.num_scale_rows, TOP_K=top_k,
        SIZE=size, WIDTH=width, IS_FP8=weight.is_fp8, IS_UNIFORM=weight.is_uniform(tiling.tile, 2),
        ROWS=tiling.rows, TILE=tiling.tile, num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )  # fmt: skip
    return h, h_scales


def multiply_down(
    h: torch.Tensor,
    h_scales: torch.Tensor,
    weight: Pieces,
    tiles: Tiles,
    weights: torch.Tensor,
    tiling: Tiling,
) -> torch.Tensor:
    """[N, top_k, SIZE] bfloat16: each slot's product times its weight [N, top_k] of the router."""
    (num_tokens, top_k), size = weights.shape, weight.data.shape[1]
    out = torch.empty(num_tokens, top_k, size, dtype=torch.bfloat16, device=h.device)
    operands = (h, h_scales, weight.data, weight.scales, weight.scale_row, weights, out)
    places = (tiles.expert, tiles.first, tiles.counts, tiles.slots)
    if tiling.is_paired:
        paired[(size // (2 * tiling.tile), tiles.num_tiles)](
            *operands, out, *places, num_tokens, weight.num_scale_rows, SLOTS_PER_ROW=1,
            SIZE=h.shape[1], NUM_OUT=size, IS_UP=False, **_constants(tiling),
        )  # fmt: skip
        return out
    down_many[(triton.cdiv(size, tiling.tile), tiles.num_tiles)](
        *operands, *places, num_tokens, weight.num_scale_rows, SIZE=h.shape[1], NUM_OUT=size,
        IS_FP8=weight.is_fp8, IS_UNIFORM=weight.is_uniform(tiling.tile, 1), ROWS=tiling.rows,
        TILE=tiling.tile, num_warps=tiling.num_warps, num_stages=tiling.num_stages,
    )  # fmt: skip
    return out


def _constants(tiling: Tiling) -> dict[str, int | None]:
    return {
        "ROWS": tiling.rows,
        "REST": tiling.rest,
        "TILE": tiling.tile,
        "num_warps": tiling.num_warps,
        "num_stages": tiling.num_stages,
        "maxnreg": tiling.max_registers,
    }
