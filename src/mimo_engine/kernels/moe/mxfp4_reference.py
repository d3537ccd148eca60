"""What kernels/moe/mxfp4.py computes, in plain torch: exact weights, activations as packed for."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mimo_engine.kernels.activation import swiglu
from mimo_engine.kernels.moe import reference
from mimo_engine.kernels.quant import Mxfp4Weight, rounded_to_fp8
from mimo_engine.kernels.quant.mxfp4_layout import PackedMxfp4

__all__ = ["experts"]


def experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: PackedMxfp4,
    down: PackedMxfp4,
) -> torch.Tensor:
    """[N, 1, H] in x's dtype, as kernels/moe/reference.py; for "fp8" x and the inner activation are
    rounded as they are for FP8 weights (quant/activations.py)."""
    first, second = gate_up.unpack(), down.unpack()
    if gate_up.activations == "bf16":
        return reference.experts(x, chosen, weights, first, second)
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in chosen.unique().tolist():
        tokens, places = (chosen == expert).nonzero(as_tuple=True)
        inner = swiglu(_rounded_linear(x[tokens], first[expert]))
        y = _rounded_linear(inner, second[expert])
        out.index_add_(0, tokens, y.float() * weights[tokens, places, None])
    return out.to(x.dtype)[:, None]


def _rounded_linear(x: torch.Tensor, weight: Mxfp4Weight) -> torch.Tensor:
    return F.linear(rounded_to_fp8(x), weight.decode(torch.float32)).to(x.dtype)
