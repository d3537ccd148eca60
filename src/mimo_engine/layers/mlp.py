"""The two feed-forward kinds: a dense SwiGLU, and routed experts."""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.config.model import RouterSpec
from mimo_engine.distributed.groups import Comm
from mimo_engine.kernels.dispatch import Kernels
from mimo_engine.layers.linear import Linear
from mimo_engine.layers.weight_format import Weight

__all__ = ["DenseMlp", "MoeMlp"]


class DenseMlp(nn.Module):
    """down(silu(gate(x)) * up(x)); `width` is this rank's share of the inner width."""

    def __init__(self, hidden_size: int, width: int, comm: Comm, kernels: Kernels) -> None:
        super().__init__()
        self.gate_up_proj = Linear(hidden_size, 2 * width, kernels)
        self.down_proj = Linear(width, hidden_size, kernels)
        self._comm = comm
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, S, H], parts to be added up."""
        inner = self._kernels.swiglu(self.gate_up_proj(x))
        return self._comm.reduce_parts(self.down_proj.parts(inner))


class Router(nn.Module):
    """fp32 weight [E, H] and correction bias [E]; the same on every rank."""

    def __init__(self, hidden_size: int, spec: RouterSpec, kernels: Kernels) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(spec.num_experts, hidden_size))
        self.e_score_correction_bias = nn.Parameter(torch.empty(spec.num_experts))
        self._spec = spec
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, H] -> experts [N, top_k] (integers), weights [N, top_k] fp32."""
        return self._kernels.route(
            x,
            self.weight,
            self.e_score_correction_bias,
            top_k=self._spec.num_experts_per_tok,
            norm_topk_prob=self._spec.norm_topk_prob,
            scaling_factor=self._spec.scaling_factor,
        )


class StackedLinear(nn.Module):
    """The same linear of every expert: weight [E, out, in], plain or quantised."""

    def __init__(self, num_experts: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight: Weight = nn.Parameter(torch.empty(num_experts, out_features, in_features))


class Experts(nn.Module):
    """All routed experts, each with this rank's share of the inner width."""

    def __init__(self, num_experts: int, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_up_proj = StackedLinear(num_experts, hidden_size, 2 * width)
        self.down_proj = StackedLinear(num_experts, width, hidden_size)


class MoeMlp(nn.Module):
    """Router and experts; no shared expert in this family (text.md 2.4)."""

    def __init__(
        self, hidden_size: int, width: int, spec: RouterSpec, comm: Comm, kernels: Kernels
    ) -> None:
        super().__init__()
        self.gate = Router(hidden_size, spec, kernels)
        self.experts = Experts(spec.num_experts, hidden_size, width)
        self._comm = comm
        self._kernels = kernels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, S, H], parts to be added up."""
        chosen, weights = self.gate(x)
        gate_up, down = self.experts.gate_up_proj.weight, self.experts.down_proj.weight
        return self._comm.reduce_parts(self._kernels.experts(x, chosen, weights, gate_up, down))
