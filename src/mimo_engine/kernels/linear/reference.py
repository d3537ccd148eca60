"""The definition, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mimo_engine.kernels.quant import Fp8BlockWeight, Weight, materialise, rounded_to_fp8

__all__ = ["linear", "linear_parts"]


def linear(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See the package."""
    if isinstance(weight, Fp8BlockWeight) and x.dtype is torch.bfloat16:
        return F.linear(rounded_to_fp8(x), weight.decode(torch.float32)).to(x.dtype)
    return F.linear(x, materialise(weight, x.dtype))


def linear_parts(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See the package: one part."""
    return linear(x, weight)[:, None]
