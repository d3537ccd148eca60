"""The definitions, in plain torch."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from mimo_engine.kernels.activation import swiglu
from mimo_engine.kernels.linear import linear
from mimo_engine.kernels.quant import Weight

__all__ = ["experts", "route"]


def route(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    top_k: int,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts [N, top_k] int64, weights [N, top_k] fp32) for x [N, H] (text.md 2.4, steps 1 to 8).

    weight [E, H] and bias [E] are fp32. The bias only chooses; the weights are the sigmoid scores
    without it.
    """
    scores = F.linear(x.float(), weight.float()).sigmoid()
    experts = (scores + bias).topk(top_k, dim=-1).indices
    weights = scores.gather(-1, experts)
    if norm_topk_prob:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return experts, weights * scaling_factor


def experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight,
    down: Weight,
) -> torch.Tensor:
    """See the package: one part, summed in fp32. Only experts that some token chose are touched."""
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    order = chosen.flatten().argsort(stable=True)
    counts = torch.bincount(chosen.flatten()).tolist()
    top_k = chosen.shape[-1]
    start = 0
    for index, count in enumerate(counts):
        if count == 0:
            continue
        slots = order[start : start + count]
        start += count
        tokens = slots // top_k
        y = linear(swiglu(linear(x[tokens], gate_up[index])), down[index])
        out.index_add_(0, tokens, y.float() * weights.flatten()[slots, None])
    return out.to(x.dtype)[:, None]
