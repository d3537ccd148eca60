"""What the device knows of running requests, and the rows of one step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["SlotTensors", "StepRows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SlotTensors:
    """One value a slot; slot 0 is padding."""

    last_token: torch.Tensor
    """[S] int64: the last one known, whose K and V are still to be computed."""
    position: torch.Tensor
    """[S] int64: of the last token; -1: nobody's."""
    output_index: torch.Tensor
    """[S] int64: of the token that comes next."""
    drafts: torch.Tensor
    """[S, D] int64: guesses of the tokens that follow."""
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
            drafts=torch.zeros(num_slots + 1, max(1, num_drafts), dtype=torch.int64, device=device),
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
    write_slots: Sequence[torch.Tensor]
    """[N] int64 a table: where K and V go; -1: nowhere."""
    seed: torch.Tensor
    """[N] int64, and so on: as in `SlotTensors`, by row."""
    output_index: torch.Tensor
    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    min_p: torch.Tensor
