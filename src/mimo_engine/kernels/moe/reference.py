"""Mixture of experts: the router, and the weighted sum of the chosen experts' outputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F

__all__ = ["moe", "route", "swiglu"]


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up, unclamped; gate_up [..., 2 * I] holds gate first. Returns [..., I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


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


def moe(
    x: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    expert: Callable[[int], tuple[torch.Tensor, torch.Tensor]],
) -> torch.Tensor:
    """sum over k of weights[:, k] * down(swiglu(gate_up(x))), in fp32 and cast once (step 9).

    x [N, H]; experts and weights [N, top_k]; expert(e) gives gate_up [2 * I, H] and down [H, I] in
    x's dtype. Returns [N, H] in x's dtype. Only experts that some token chose are touched.
    """
    out = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    order = experts.flatten().argsort(stable=True)
    counts = torch.bincount(experts.flatten()).tolist()
    top_k = experts.shape[-1]
    start = 0
    for index, count in enumerate(counts):
        if count == 0:
            continue
        chosen = order[start : start + count]
        start += count
        tokens = chosen // top_k
        gate_up, down = expert(index)
        y = F.linear(swiglu(F.linear(x[tokens], gate_up)), down)
        out.index_add_(0, tokens, y.float() * weights.flatten()[chosen, None])
    return out.to(x.dtype)
