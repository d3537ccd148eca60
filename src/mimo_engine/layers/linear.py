"""Linear without bias, over plain or quantised weights."""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.kernels.dispatch import Kernels
from mimo_engine.layers.weight_format import Weight

__all__ = ["Linear"]


class Linear(nn.Module):
    """y = x W^T for the slice of W that this rank holds; sums over ranks are the caller's.

    x [N, in_features] -> [N, out_features], in x's dtype.
    """

    def __init__(self, in_features: int, out_features: int, kernels: Kernels) -> None:
        super().__init__()
        self.weight: Weight = nn.Parameter(torch.empty(out_features, in_features))
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._kernels.linear(x, self.weight)

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        """[N, S, out_features], whose sum over S is `forward`'s result: for who adds up anyway."""
        return self._kernels.linear_parts(x, self.weight)
