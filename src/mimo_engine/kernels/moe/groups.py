"""Which tokens go to which expert, in tiles, without a word to the host.

A *slot* is one choice of one token, numbered token * top_k + k. A *tile* is up to `rows` slots of
one expert; `expert` is -1 for tiles that are not needed, since their number is decided by shapes
alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

__all__ = ["Tiles", "make_tiles", "other_tiles"]

_TILES_AT_ONCE = 16
_MAX_SLOTS_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Tiles:
    """All int32."""

    expert: torch.Tensor
    """[T]."""
    first: torch.Tensor
    """[T] the tile's first place among its expert's slots."""
    counts: torch.Tensor
    """[E] slots of each expert."""
    slots: torch.Tensor
    """[E, N] the slots of each expert, in order; beyond its count anything."""

    @property
    def num_tiles(self) -> int:
        return self.expert.shape[0]


@triton.jit(do_not_specialize=["num_slots", "num_tokens"])
def _collect(
    chosen_ptr,
    slots_ptr,
    counts_ptr,
    num_slots,
    num_tokens,
    BLOCK: tl.constexpr,
):
    """The slots of one expert, in order."""
    expert = tl.program_id(0)
    count = 0
    for start in range(0, num_slots, BLOCK):
        slots = start + tl.arange(0, BLOCK)
        inside = slots < num_slots
        is_own = tl.load(chosen_ptr + slots, mask=inside, other=-1) == expert
        ones = is_own.to(tl.int32)
        places = count + tl.cumsum(ones, axis=0) - 1
        tl.store(slots_ptr + expert.to(tl.int64) * num_tokens + places, slots, mask=is_own)
        count += tl.sum(ones, axis=0)
    tl.store(counts_ptr + expert, count)


@triton.jit(do_not_specialize=["num_tiles"])
def _lay_tiles(
    counts_ptr,
    expert_ptr,
    first_ptr,
    num_tiles,
    NUM_EXPERTS: tl.constexpr,
    ROWS: tl.constexpr,
    REST: tl.constexpr,
    BLOCK: tl.constexpr,
    TILES: tl.constexpr,
):
    """TILES of them: tile t belongs to the expert whose tiles begin last at or before t."""
    experts = tl.arange(0, BLOCK)
    counts = tl.load(counts_ptr + experts, mask=experts < NUM_EXPERTS, other=0)
    tiles = (tl.maximum(counts - REST, tl.minimum(counts, 1)) + ROWS - 1) // ROWS
    ends = tl.cumsum(tiles, axis=0)
    starts = ends - tiles
    number = tl.program_id(0) * TILES + tl.arange(0, TILES)
    is_inside = (starts[None, :] <= number[:, None]) & (number[:, None] < ends[None, :])
    expert = tl.max(tl.where(is_inside, experts[None, :], -1), axis=1)
    start = tl.max(tl.where(is_inside, starts[None, :], 0), axis=1)
    tl.store(expert_ptr + number, expert, mask=number < num_tiles)
    tl.store(first_ptr + number, (number - start) * ROWS, mask=number < num_tiles)


def make_tiles(chosen: torch.Tensor, num_experts: int, rows: int, rest: int = 0) -> Tiles:
    """chosen [N, top_k] int32. An expert's last tile may have `rest` slots more than the others."""
    assert chosen.dtype is torch.int32
    assert chosen.is_contiguous()
    num_tokens, num_slots = chosen.shape[0], chosen.numel()
    counts = torch.empty(num_experts, dtype=torch.int32, device=chosen.device)
    slots = torch.empty(num_experts, num_tokens, dtype=torch.int32, device=chosen.device)
    block = min(_MAX_SLOTS_AT_ONCE, max(32, triton.next_power_of_2(num_slots)))
    _collect[(num_experts,)](
        chosen,
        slots,
        counts,
        num_slots,
        num_tokens,
        BLOCK=block,
        num_warps=4 if block <= 1024 else 8,
    )
    return _laid(counts, slots, num_slots, rows, rest)


def other_tiles(tiles: Tiles, num_slots: int, rows: int, rest: int = 0) -> Tiles:
    """The same slots in tiles of another size."""
    return _laid(tiles.counts, tiles.slots, num_slots, rows, rest)


def _laid(counts: torch.Tensor, slots: torch.Tensor, num_slots: int, rows: int, rest: int) -> Tiles:
    num_experts = len(counts)
    # An expert has a last tile that is not full, if it has any.
    num_tiles = min(num_slots, num_experts + num_slots // rows)
    expert = torch.empty(num_tiles, dtype=torch.int32, device=counts.device)
    first = torch.empty(num_tiles, dtype=torch.int32, device=counts.device)
    _lay_tiles[(triton.cdiv(num_tiles, _TILES_AT_ONCE),)](
        counts,
        expert,
        first,
        num_tiles,
        NUM_EXPERTS=num_experts,
        ROWS=rows,
        REST=rest,
        BLOCK=triton.next_power_of_2(num_experts),
        TILES=_TILES_AT_ONCE,
        num_warps=8,
    )
    return Tiles(expert=expert, first=first, counts=counts, slots=slots)
