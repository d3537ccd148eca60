"""How the training goes, task by task: sums on the device, read when a report is due."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mimo_engine.demo.batches import TrainingBatch
from mimo_engine.demo.losses import BackboneLoss, DraftLoss

__all__ = ["TaskMeter"]

_LEAST_WEIGHT = 0.05
"""Of a token of an answer."""


class TaskMeter:
    """Mean loss and share of right guesses, of the tokens of answers."""

    def __init__(self, names: Sequence[str], device: torch.device) -> None:
        self._names = names
        self._sums = torch.zeros(len(names), 3, device=device)
        self._extra = torch.zeros(4, device=device)
        """Right guesses of the draft layers, and the fullest expert's share."""
        self._num_steps = 0

    def add(
        self, batch: TrainingBatch, loss: BackboneLoss, drafts: DraftLoss | None, peak: torch.Tensor
    ) -> None:
        counts = (loss.token_weights > _LEAST_WEIGHT).float()
        rows = torch.stack((loss.token_losses * counts, loss.is_right * counts, counts), dim=1)
        self._sums.index_add_(0, batch.tasks, rows)
        if drafts is not None:
            self._extra[:3] += drafts.shares_right
        self._extra[3] += peak
        self._num_steps += 1

    def report(self) -> str:
        """A few lines, and start anew."""
        sums = self._sums.tolist()
        extra = (self._extra / max(1, self._num_steps)).tolist()
        cells = [
            f"{name:>19} {loss / max(1, count):5.2f} {100 * right / max(1, count):3.0f}%"
            for name, (loss, right, count) in zip(self._names, sums, strict=True)
        ]
        lines = ["  ".join(cells[i : i + 4]) for i in range(0, len(cells), 4)]
        drafts = " ".join(f"{100 * share:.0f}%" for share in extra[:3])
        lines.append(f"drafts {drafts}  fullest expert x {extra[3]:.2f}  {self._num_steps} steps")
        self._sums.zero_()
        self._extra.zero_()
        self._num_steps = 0
        return "\n".join(lines)
