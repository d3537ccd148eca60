"""Linear without bias, over plain or quantised weights."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.layers.weight_format import Weight, materialise

__all__ = ["Linear"]


class Linear(nn.Module):
    """y = x W^T for the slice of W that this rank holds; sums over ranks are the caller's.

    x [..., in_features] -> [..., out_features], in x's dtype.
    """

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight: Weight = nn.Parameter(torch.empty(out_features, in_features))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, materialise(self.weight, x.dtype))
