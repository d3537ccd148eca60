"""RMSNorm, alone and after a sum into the residual stream."""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.kernels.dispatch import REFERENCE, Kernels

__all__ = ["RMSNorm"]


class RMSNorm(nn.Module):
    """w * x / sqrt(mean(x^2) + eps) over the last dim; fp32 inside, rounded once (text.md 2.1)."""

    def __init__(self, size: int, eps: float, kernels: Kernels = REFERENCE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self._eps = eps
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x [N, H] -> [N, H]."""
        return self._kernels.add_rms_norm(x, None, self.weight, self._eps)[1]

    def add(self, x: torch.Tensor, parts: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """(x + sum of parts [N, S, H], that sum's norm); None: nothing to add."""
        return self._kernels.add_rms_norm(x, parts, self.weight, self._eps)
