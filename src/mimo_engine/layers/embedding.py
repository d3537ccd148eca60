"""Token embedding and output head, both cut by vocabulary rows over the ranks."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.distributed.groups import Comm
from mimo_engine.kernels.dispatch import Kernels
from mimo_engine.layers.weight_format import Weight

__all__ = ["Embedding", "Head"]


class Embedding(nn.Module):
    """Rows first_row ... first_row + num_rows - 1 of the table; other ids contribute zero."""

    def __init__(
        self, num_rows: int, hidden_size: int, *, first_row: int, vocab_size: int, comm: Comm
    ) -> None:
        super().__init__()
        self._is_whole = num_rows >= vocab_size
        self.weight = nn.Parameter(torch.empty(num_rows, hidden_size))
        self._first_row = first_row
        self._comm = comm

    def forward(self, token_ids: torch.Tensor) -> torch.Tensor:
        """token_ids [N] int64 -> [N, H]."""
        if self._is_whole:
            return F.embedding(token_ids, self.weight)
        local = token_ids - self._first_row
        absent = (local < 0) | (local >= self.weight.shape[0])
        rows = F.embedding(local.masked_fill(absent, 0), self.weight)
        return self._comm.all_reduce(rows.masked_fill(absent[:, None], 0))


class Head(nn.Module):
    """logits = hidden W^T, gathered over ranks; rows of padding beyond the vocabulary are cut."""

    def __init__(
        self, num_rows: int, hidden_size: int, *, vocab_size: int, comm: Comm, kernels: Kernels
    ) -> None:
        super().__init__()
        self.weight: Weight = nn.Parameter(torch.empty(num_rows, hidden_size))
        self._vocab_size = vocab_size
        self._comm = comm
        self._kernels = kernels

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [R, H] -> logits [R, V] in hidden's dtype."""
        logits = self._kernels.linear(hidden, self.weight)
        return self._comm.all_gather(logits)[..., : self._vocab_size]
