"""The definition, in plain torch; differentiable."""

from __future__ import annotations

import torch
from torch.nn import functional as F

__all__ = ["swiglu"]


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See the package."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up
