"""A program a slot, all its rows at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from mimo_engine.kernels.decode_step.state import RECENT, DraftRows, SlotTensors, StepRows

__all__ = ["begin_drafts", "begin_step", "draft_tokens", "end_drafts", "end_step"]

_RECENT = tl.constexpr(RECENT)


@triton.jit
def _write_slots(
    table_ptr, table_stride, out_ptr, slot, place, positions, is_written, mask,
    PAGE_SIZE: tl.constexpr,
):  # fmt: skip
    own = table_ptr + slot * table_stride + positions // PAGE_SIZE
    page = tl.load(own, mask=mask & is_written, other=0).to(tl.int64)
    written = tl.where(is_written, page * PAGE_SIZE + positions % PAGE_SIZE, -1)
    tl.store(out_ptr + place, written, mask=mask)


@triton.jit
def _begin(
    slots_ptr,
    num_drafts_ptr,
    last_token_ptr,
    position_ptr,
    index_ptr,
    draft_ptr,
    seed_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    first_table_ptr,
    second_table_ptr,
    out_token_ptr,
    out_position_ptr,
    out_first_ptr,
    out_last_ptr,
    out_first_slot_ptr,
    out_second_slot_ptr,
    out_seed_ptr,
    out_index_ptr,
    out_temperature_ptr,
    out_top_k_ptr,
    out_top_p_ptr,
    out_min_p_ptr,
    draft_stride,
    first_stride,
    second_stride,
    NUM_TABLES: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    member = tl.program_id(0)
    slot = tl.load(slots_ptr + member)
    rows = tl.arange(0, BLOCK)
    mask = rows < NUM_ROWS
    place = member * NUM_ROWS + rows
    first = tl.load(position_ptr + slot)
    drafts = tl.load(draft_ptr + slot * draft_stride + rows - 1, mask=mask & (rows > 0), other=0)
    tokens = tl.where(rows == 0, tl.load(last_token_ptr + slot), drafts)
    positions = tl.where(first >= 0, first + rows, -1)
    tl.store(out_token_ptr + place, tokens, mask=mask)
    tl.store(out_position_ptr + place, positions, mask=mask)
    # All rows of nobody are at negative positions.
    num_drafts = tl.where(first >= 0, tl.load(num_drafts_ptr + member), 0)
    start = tl.where(first >= 0, first, -NUM_ROWS).to(tl.int32)
    tl.store(out_first_ptr + member, start)
    tl.store(out_last_ptr + member, start + num_drafts)
    is_written = (rows <= num_drafts) & (positions >= 0)
    _write_slots(
        first_table_ptr, first_stride, out_first_slot_ptr, slot, place, positions, is_written,
        mask, PAGE_SIZE,
    )  # fmt: skip
    if NUM_TABLES == 2:
        _write_slots(
            second_table_ptr, second_stride, out_second_slot_ptr, slot, place, positions,
            is_written, mask, PAGE_SIZE,
        )  # fmt: skip
    zeros = tl.zeros((BLOCK,), tl.int64)
    tl.store(out_seed_ptr + place, tl.load(seed_ptr + slot) + zeros, mask=mask)
    tl.store(out_index_ptr + place, tl.load(index_ptr + slot) + rows, mask=mask)
    zeros = tl.zeros((BLOCK,), tl.float32)
    tl.store(out_temperature_ptr + place, tl.load(temperature_ptr + slot) + zeros, mask=mask)
    tl.store(out_top_p_ptr + place, tl.load(top_p_ptr + slot) + zeros, mask=mask)
    tl.store(out_min_p_ptr + place, tl.load(min_p_ptr + slot) + zeros, mask=mask)
    zeros = tl.zeros((BLOCK,), tl.int32)
    tl.store(out_top_k_ptr + place, tl.load(top_k_ptr + slot) + zeros, mask=mask)


def begin_step(
    state: SlotTensors,
    slots: torch.Tensor,
    num_drafts: torch.Tensor,
    tables: Sequence[torch.Tensor],
    page_size: int,
    num_rows: int,
) -> StepRows:
    """See the package; one table or two."""
    assert 1 <= len(tables) <= 2
    assert num_rows - 1 <= state.drafts.shape[1]
    num_members = len(slots)
    device = slots.device

    def rows(dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(num_members * num_rows, dtype=dtype, device=device)

    out = StepRows(
        token_ids=rows(torch.int64),
        positions=rows(torch.int64),
        first_position=torch.empty(num_members, dtype=torch.int32, device=device),
        last_position=torch.empty(num_members, dtype=torch.int32, device=device),
        write_slots=[rows(torch.int64) for _ in tables],
        seed=rows(torch.int64),
        output_index=rows(torch.int64),
        temperature=rows(torch.float32),
        top_k=rows(torch.int32),
        top_p=rows(torch.float32),
        min_p=rows(torch.float32),
    )
    _begin[(num_members,)](
        slots, num_drafts, state.last_token, state.position, state.output_index, state.drafts,
        state.seed, state.temperature, state.top_k, state.top_p, state.min_p, tables[0], tables[-1],
        out.token_ids, out.positions, out.first_position, out.last_position, out.write_slots[0],
        out.write_slots[-1],
        out.seed, out.output_index, out.temperature, out.top_k, out.top_p, out.min_p,
        state.drafts.stride(0), tables[0].stride(0), tables[-1].stride(0),
        NUM_TABLES=len(tables), PAGE_SIZE=page_size, NUM_ROWS=num_rows,
        BLOCK=triton.next_power_of_2(num_rows), num_warps=1,
    )  # fmt: skip
    return out


@triton.jit
def _end(
    slots_ptr,
    accepted_ptr,
    next_ptr,
    last_token_ptr,
    position_ptr,
    index_ptr,
    recent_ptr,
    draft_ptr,
    out_ptr,
    draft_stride,
    NUM_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    member = tl.program_id(0)
    slot = tl.load(slots_ptr + member)
    num_accepted = tl.load(accepted_ptr + member).to(tl.int64)
    token = tl.load(next_ptr + member)
    position = tl.load(position_ptr + slot)
    is_real = (position >= 0) & (token >= 0)
    count = tl.where(is_real, num_accepted + 1, 0)
    rows = tl.arange(0, BLOCK)
    mask = rows < NUM_ROWS
    drafts = tl.load(draft_ptr + slot * draft_stride + rows, mask=rows < NUM_ROWS - 1, other=0)
    tokens = tl.where(rows == num_accepted, token, drafts)
    own = out_ptr + member * (NUM_ROWS + 1)
    tl.store(own, count)
    tl.store(own + 1 + rows, tl.where(rows < count, tokens, -1), mask=mask)
    ring = recent_ptr + slot * _RECENT + (position + 1 + rows) % _RECENT
    tl.store(ring, tokens, mask=rows < count)
    if is_real:
        tl.store(last_token_ptr + slot, token)
        tl.store(position_ptr + slot, position + count)
        tl.store(index_ptr + slot, tl.load(index_ptr + slot) + count)


def end_step(
    state: SlotTensors,
    slots: torch.Tensor,
    num_accepted: torch.Tensor,
    next_token: torch.Tensor,
    num_rows: int,
) -> torch.Tensor:
    """See the package."""
    out = torch.empty(len(slots), num_rows + 1, dtype=torch.int64, device=slots.device)
    _end[(len(slots),)](
        slots,
        num_accepted,
        next_token,
        state.last_token,
        state.position,
        state.output_index,
        state.recent,
        state.drafts,
        out,
        state.drafts.stride(0),
        NUM_ROWS=num_rows,
        BLOCK=triton.next_power_of_2(num_rows),
        num_warps=1,
    )
    return out


@triton.jit
def _begin_drafts(
    slots_ptr,
    position_ptr,
    draft_from_ptr,
    visible_from_ptr,
    table_ptr,
    out_position_ptr,
    out_first_ptr,
    out_last_ptr,
    out_visible_ptr,
    out_slot_ptr,
    out_place_ptr,
    table_stride,
    RING_LEN: tl.constexpr,
    PAGE_SIZE: tl.constexpr,
    NUM_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    member = tl.program_id(0)
    slot = tl.load(slots_ptr + member)
    last = tl.load(position_ptr + slot)
    first = tl.where(last >= 0, last - NUM_ROWS, -NUM_ROWS - 1)
    rows = tl.arange(0, BLOCK)
    mask = rows < NUM_ROWS
    place = member * NUM_ROWS + rows
    positions = first + rows
    tl.store(out_position_ptr + place, positions, mask=mask)
    tl.store(out_first_ptr + member, first.to(tl.int32))
    tl.store(out_last_ptr + member, (first + NUM_ROWS - 1).to(tl.int32))
    tl.store(out_visible_ptr + member, tl.load(visible_from_ptr + slot).to(tl.int32))
    is_written = (positions >= tl.load(draft_from_ptr + slot)) & (positions >= 0)
    _write_slots(
        table_ptr, table_stride, out_slot_ptr, slot, place, positions, is_written, mask, PAGE_SIZE
    )
    # Python's remainder, of what may be negative.
    within = (positions % RING_LEN + RING_LEN) % RING_LEN
    tl.store(out_place_ptr + place, slot * RING_LEN + within, mask=mask)


def begin_drafts(
    state: SlotTensors,
    slots: torch.Tensor,
    table: torch.Tensor,
    page_size: int,
    num_rows: int,
    ring_len: int,
) -> DraftRows:
    """See the package."""
    num_members, device = len(slots), slots.device
    size = num_members * num_rows
    out = DraftRows(
        positions=torch.empty(size, dtype=torch.int64, device=device),
        first_position=torch.empty(num_members, dtype=torch.int32, device=device),
        last_position=torch.empty(num_members, dtype=torch.int32, device=device),
        visible_from=torch.empty(num_members, dtype=torch.int32, device=device),
        write_slots=torch.empty(size, dtype=torch.int64, device=device),
        places=torch.empty(size, dtype=torch.int64, device=device),
    )
    _begin_drafts[(num_members,)](
        slots,
        state.position,
        state.draft_from,
        state.visible_from,
        table,
        out.positions,
        out.first_position,
        out.last_position,
        out.visible_from,
        out.write_slots,
        out.places,
        table.stride(0),
        RING_LEN=ring_len,
        PAGE_SIZE=page_size,
        NUM_ROWS=num_rows,
        BLOCK=triton.next_power_of_2(num_rows),
        num_warps=1,
    )
    return out


@triton.jit
def _draft_tokens(
    slots_ptr,
    position_ptr,
    recent_ptr,
    guess_ptr,
    out_ptr,
    layer,
    guess_stride,
    NUM_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    member = tl.program_id(0)
    slot = tl.load(slots_ptr + member)
    last = tl.load(position_ptr + slot)
    rows = tl.arange(0, BLOCK)
    mask = rows < NUM_ROWS
    wanted = last - NUM_ROWS + rows + 1 + layer
    is_known = wanted <= last
    within = (wanted % _RECENT + _RECENT) % _RECENT
    known = tl.load(recent_ptr + slot * _RECENT + within, mask=mask & is_known, other=0)
    guessed = tl.load(
        guess_ptr + member * guess_stride + wanted - last - 1,
        mask=mask & (wanted > last),
        other=0,
    )
    tl.store(out_ptr + member * NUM_ROWS + rows, tl.where(is_known, known, guessed), mask=mask)


def draft_tokens(
    state: SlotTensors, slots: torch.Tensor, guesses: torch.Tensor, layer: int, num_rows: int
) -> torch.Tensor:
    """See the package."""
    out = torch.empty(len(slots) * num_rows, dtype=torch.int64, device=slots.device)
    _draft_tokens[(len(slots),)](
        slots,
        state.position,
        state.recent,
        guesses,
        out,
        layer,
        guesses.stride(0),
        NUM_ROWS=num_rows,
        BLOCK=triton.next_power_of_2(num_rows),
        num_warps=1,
    )
    return out


@triton.jit
def _end_drafts(
    slots_ptr,
    guess_ptr,
    position_ptr,
    visible_from_ptr,
    draft_ptr,
    draft_from_ptr,
    num_kept,
    guess_stride,
    draft_stride,
    NUM_GUESSES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    member = tl.program_id(0)
    slot = tl.load(slots_ptr + member)
    places = tl.arange(0, BLOCK)
    mask = places < NUM_GUESSES
    guesses = tl.load(guess_ptr + member * guess_stride + places, mask=mask, other=0)
    tl.store(draft_ptr + slot * draft_stride + places, guesses, mask=mask)
    certain = tl.load(position_ptr + slot) - num_kept
    tl.store(draft_from_ptr + slot, tl.maximum(certain, tl.load(visible_from_ptr + slot)))


def end_drafts(
    state: SlotTensors, slots: torch.Tensor, guesses: torch.Tensor, num_kept: int
) -> None:
    """See the package."""
    num_guesses = guesses.shape[1]
    _end_drafts[(len(slots),)](
        slots,
        guesses,
        state.position,
        state.visible_from,
        state.drafts,
        state.draft_from,
        num_kept,
        guesses.stride(0),
        state.drafts.stride(0),
        NUM_GUESSES=num_guesses,
        BLOCK=triton.next_power_of_2(num_guesses),
        num_warps=1,
    )
