"""The definition, in plain torch; differentiable."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["add_rms_norm"]


def add_rms_norm(
    x: torch.Tensor, parts: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package."""
    if parts is not None:
        x = (x.float() + parts.float().sum(dim=1)).to(x.dtype)
    return x, F.rms_norm(x, weight.shape, weight, eps)
