"""What the device knows of running requests, and the rows of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["RECENT", "DraftRows", "SlotTensors", "StepRows"]

RECENT = 34
"""Tokens of a slot that are kept: more than any pass of draft layers reads, of 16 at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotTensors:
    """One value a slot; slot 0 is padding."""

    last_token: torch.Tensor
    """[S] int64: the last one known, whose K and V are still to be computed."""
    position: torch.Tensor
    """[S] int64: of the last token; -1: nobody's."""
    output_index: torch.Tensor
    """[S] int64: of the token that comes next."""
    recent: torch.Tensor
    """[S, RECENT] int64: the last tokens, the one at position p in place p % RECENT."""
    drafts: torch.Tensor
    """[S, D] int64: guesses of the tokens that follow."""
    draft_from: torch.Tensor
    """[S] int64: the first row that draft layers must compute (anew) in their next pass."""
    visible_from: torch.Tensor
    """[S] int64: no row of draft layers may see an earlier one."""
    seed: torch.Tensor
    """[S] int64."""
    temperature: torch.Tensor
    """[S] float32."""
    top_k: torch.Tensor
    """[S] int32."""
    top_p: torch.Tensor
    """[S] float32."""
    min_p: torch.Tensor
    """[S] float32."""

    @classmethod
    def empty(cls, num_slots: int, num_drafts: int, device: torch.device) -> SlotTensors:
        """For slots 1 ... num_slots."""

        def full(value: float, dtype: torch.dtype) -> torch.Tensor:
            return torch.full((num_slots + 1,), value, dtype=dtype, device=device)

        return cls(
            last_token=full(0, torch.int64),
            position=full(-1, torch.int64),
            output_index=full(0, torch.int64),
            recent=torch.zeros(num_slots + 1, RECENT, dtype=torch.int64, device=device),
            drafts=torch.zeros(num_slots + 1, max(1, num_drafts), dtype=torch.int64, device=device),
            draft_from=full(0, torch.int64),
            visible_from=full(0, torch.int64),
            seed=full(0, torch.int64),
            temperature=full(0, torch.float32),
            top_k=full(0, torch.int32),
            top_p=full(1, torch.float32),
            min_p=full(0, torch.float32),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRows:
    """Rows of a step, num_rows of each of B slots, end to end: N = B * num_rows."""

    token_ids: torch.Tensor
    """[N] int64."""
    positions: torch.Tensor
    """[N] int64; -1 in padding."""
    first_position: torch.Tensor
    """[B] int32."""
    last_position: torch.Tensor
    """[B] int32: of the last draft that counts; in padding any negative."""
    write_slots: Sequence[torch.Tensor]
    """[N] int64 a table: where K and V go; -1: nowhere."""
    seed: torch.Tensor
    """[N] int64, and so on: as in `SlotTensors`, by row."""
    output_index: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class DraftRows:
    """Rows of a pass of draft layers, num_rows of each of B slots, end to end: N = B * num_rows."""

    positions: torch.Tensor
    """[N] int64; a slot's last row is the one before its last token; negative: nothing's."""
    first_position: torch.Tensor
    """[B] int32."""
    last_position: torch.Tensor
    """[B] int32."""
    visible_from: torch.Tensor
    """[B] int32."""
    write_slots: torch.Tensor
    """[N] int64; -1: a row that is there already, or nobody's."""
    places: torch.Tensor
    """[N] int64: of the row's hidden state, slot * ring_len + position % ring_len."""
