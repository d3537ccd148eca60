"""The definitions, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mimo_engine.kernels.decode_step.state import RECENT, DraftRows, SlotTensors, StepRows

__all__ = ["begin_drafts", "begin_step", "draft_tokens", "end_drafts", "end_step"]


def begin_step(
    state: SlotTensors,
    slots: torch.Tensor,
    num_drafts: torch.Tensor,
    tables: Sequence[torch.Tensor],
    page_size: int,
    num_rows: int,
) -> StepRows:
    """See the package."""
    drafts = state.drafts[slots, : num_rows - 1]
    token_ids = torch.cat((state.last_token[slots, None], drafts), dim=1).flatten()
    first = state.position[slots]
    first_position = torch.where(first >= 0, first, -num_rows)  # all rows of nobody are negative
    offsets = torch.arange(num_rows, device=slots.device)
    positions = torch.where(first[:, None] >= 0, first[:, None] + offsets, -1).flatten()
    counts = (offsets <= num_drafts[:, None]).flatten() & (positions >= 0)
    by_row = slots.repeat_interleave(num_rows)
    write_slots = [
        torch.where(counts, _pool_slots(table, by_row, positions, page_size), -1)
        for table in tables
    ]
    return StepRows(
        token_ids=token_ids,
        positions=positions,
        first_position=first_position.int(),
        last_position=(first_position + torch.where(first >= 0, num_drafts, 0)).int(),
        write_slots=write_slots,
        seed=state.seed[by_row],
        output_index=state.output_index[by_row] + offsets.repeat(len(slots)),
        temperature=state.temperature[by_row],
        top_k=state.top_k[by_row],
        top_p=state.top_p[by_row],
        min_p=state.min_p[by_row],
    )


def _pool_slots(
    table: torch.Tensor, slots: torch.Tensor, positions: torch.Tensor, page_size: int
) -> torch.Tensor:
    page = table[slots, positions.clamp(min=0) // page_size].long()
    return page * page_size + positions % page_size


def end_step(
    state: SlotTensors,
    slots: torch.Tensor,
    num_accepted: torch.Tensor,
    next_token: torch.Tensor,
    num_rows: int,
) -> torch.Tensor:
    """See the package."""
    first = state.position[slots]
    is_real = (first >= 0) & (next_token >= 0)
    count = torch.where(is_real, num_accepted.long() + 1, 0)
    places = torch.arange(num_rows, device=slots.device)
    drafts = torch.cat((state.drafts[slots, : num_rows - 1], next_token[:, None]), dim=1)
    tokens = torch.where(places == num_accepted[:, None], next_token[:, None], drafts)
    tokens = torch.where(places < count[:, None], tokens, -1)
    state.last_token[slots] = torch.where(is_real, next_token, state.last_token[slots])
    recent = (first[:, None] + 1 + places) % RECENT
    kept = state.recent[slots[:, None], recent]
    state.recent[slots[:, None], recent] = torch.where(places < count[:, None], tokens, kept)
    state.position[slots] += count
    state.output_index[slots] += count
    return torch.cat((count[:, None], tokens), dim=1)


def begin_drafts(
    state: SlotTensors,
    slots: torch.Tensor,
    table: torch.Tensor,
    page_size: int,
    num_rows: int,
    ring_len: int,
) -> DraftRows:
    """See the package."""
    last = state.position[slots]
    first = torch.where(last >= 0, last - num_rows, -num_rows - 1)
    positions = (first[:, None] + torch.arange(num_rows, device=slots.device)).flatten()
    by_row = slots.repeat_interleave(num_rows)
    is_new = (positions >= state.draft_from[by_row]) & (positions >= 0)
    own = _pool_slots(table, by_row, positions, page_size)
    return DraftRows(
        positions=positions,
        first_position=first.int(),
        last_position=(first + num_rows - 1).int(),
        visible_from=state.visible_from[slots].int(),
        write_slots=torch.where(is_new, own, -1),
        places=by_row * ring_len + positions % ring_len,
    )


def draft_tokens(
    state: SlotTensors, slots: torch.Tensor, guesses: torch.Tensor, layer: int, num_rows: int
) -> torch.Tensor:
    """See the package."""
    last = state.position[slots][:, None]
    wanted = last - num_rows + torch.arange(num_rows, device=slots.device) + 1 + layer
    known = state.recent[slots[:, None], wanted % RECENT]
    past = (wanted - last - 1).clamp(min=0, max=guesses.shape[1] - 1)
    return torch.where(wanted <= last, known, guesses.gather(1, past)).flatten()


def end_drafts(
    state: SlotTensors, slots: torch.Tensor, guesses: torch.Tensor, num_kept: int
) -> None:
    """See the package."""
    state.drafts[slots, : guesses.shape[1]] = guesses
    certain = state.position[slots] - num_kept
    state.draft_from[slots] = torch.maximum(certain, state.visible_from[slots])
