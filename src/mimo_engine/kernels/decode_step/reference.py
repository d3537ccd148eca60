"""The definition, in plain torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mimo_engine.kernels.decode_step.state import SlotTensors, StepRows

__all__ = ["begin_step", "end_step"]


def begin_step(
    state: SlotTensors,
    slots: torch.Tensor,
    tables: Sequence[torch.Tensor],
    page_size: int,
    num_rows: int,
) -> StepRows:
    """See the package."""
    drafts = state.drafts[slots, : num_rows - 1]
    token_ids = torch.cat((state.last_token[slots, None], drafts), dim=1).flatten()
    first = state.position[slots]
    offsets = torch.arange(num_rows, device=slots.device)
    positions = torch.where(first[:, None] >= 0, first[:, None] + offsets, -1).flatten()
    by_row = slots.repeat_interleave(num_rows)
    write_slots = []
    for table in tables:
        page = table[by_row, positions.clamp(min=0) // page_size].long()
        own = page * page_size + positions % page_size
        write_slots.append(torch.where(positions >= 0, own, -1))
    return StepRows(
        token_ids=token_ids,
        positions=positions,
        first_position=first.int(),
        write_slots=write_slots,
        seed=state.seed[by_row],
        output_index=state.output_index[by_row] + offsets.repeat(len(slots)),
        temperature=state.temperature[by_row],
        top_k=state.top_k[by_row],
        top_p=state.top_p[by_row],
        min_p=state.min_p[by_row],
    )


def end_step(
    state: SlotTensors,
    slots: torch.Tensor,
    num_accepted: torch.Tensor,
    next_token: torch.Tensor,
    num_rows: int,
) -> torch.Tensor:
    """See the package."""
    is_real = (state.position[slots] >= 0) & (next_token >= 0)
    count = torch.where(is_real, num_accepted.long() + 1, 0)
    places = torch.arange(num_rows, device=slots.device)
    drafts = torch.cat((state.drafts[slots, : num_rows - 1], next_token[:, None]), dim=1)
    tokens = torch.where(places == num_accepted[:, None], next_token[:, None], drafts)
    tokens = torch.where(places < count[:, None], tokens, -1)
    state.last_token[slots] = torch.where(is_real, next_token, state.last_token[slots])
    state.position[slots] += count
    state.output_index[slots] += count
    return torch.cat((count[:, None], tokens), dim=1)
