"""The experts' layer in the form that training wants: every expert on every row.

    h[n, e] = weights[n, e] * swiglu(gate_up_e x[n]),   weights 0 where e was not chosen
    y[n]    = sum over e of down_e h[n, e]

It is `kernels/moe` with the weight inside the last product, which is linear: the same sum in
another order, and a test says so. With 8 experts of width 96 two large products are far cheaper
than sorting rows, and nothing waits for the device.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.kernels.activation import swiglu
from mimo_engine.layers.mlp import MoeMlp
from mimo_engine.model.text import DecoderLayer, TextModel

__all__ = ["DenseExperts", "ExpertLoad", "use_dense_experts"]


class ExpertLoad:
    """Counts, layer by layer, how many rows chose each expert, and evens it out.

    The correction bias chooses and does not weigh (text.md 2.4), so moving it changes which experts
    are trained, and no gradient.
    """

    def __init__(self) -> None:
        self.is_counted: torch.Tensor | None = None
        """[N] bool: rows of the batch that count; None: all."""
        self._counts: dict[nn.Parameter, torch.Tensor] = {}

    def add(self, bias: nn.Parameter, chosen: torch.Tensor) -> None:
        """chosen [N, top_k] of the layer whose correction bias is `bias`."""
        rows = torch.ones_like(chosen, dtype=torch.float32)
        if self.is_counted is not None:
            rows = rows * self.is_counted[:, None]
        counts = torch.zeros(bias.shape, device=bias.device)
        counts.scatter_add_(0, chosen.flatten(), rows.flatten())
        self._counts[bias] = self._counts.get(bias, 0) + counts

    @torch.no_grad()
    def even_out(self, rate: float) -> torch.Tensor:
        """Move each bias by `rate` towards an even load, and forget the counts.

        Returns the largest share of an expert, where 1 is even.
        """
        peaks = []
        for bias, counts in self._counts.items():
            mean = counts.mean()
            bias.add_((mean - counts).sign(), alpha=rate)
            peaks.append(counts.max() / mean)
        self._counts.clear()
        return torch.stack(peaks).max()


class DenseExperts(nn.Module):
    """Router and experts of a `MoeMlp`, under the same names."""

    def __init__(self, mlp: MoeMlp, load: ExpertLoad) -> None:
        super().__init__()
        self.gate = mlp.gate
        self.experts = mlp.experts
        self._load = load

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, 1, H]."""
        with torch.autocast(x.device.type, enabled=False):
            chosen, weights = self.gate(x)
        if self.training:
            self._load.add(self.gate.e_score_correction_bias, chosen)
        gate_up, down = self.experts.gate_up_proj.weight, self.experts.down_proj.weight
        assert isinstance(gate_up, torch.Tensor)
        assert isinstance(down, torch.Tensor)
        share = weights.new_zeros(x.shape[0], gate_up.shape[0]).scatter(1, chosen, weights)
        inner = swiglu(F.linear(x, gate_up.flatten(0, 1)).unflatten(1, (gate_up.shape[0], -1)))
        inner = inner * share[:, :, None].to(inner.dtype)
        return F.linear(inner.flatten(1), down.transpose(0, 1).flatten(1))[:, None]


def use_dense_experts(model: TextModel) -> ExpertLoad:
    """Put `DenseExperts` in the place of every layer's experts; what counts their load."""
    load = ExpertLoad()
    for layer in model.layers:
        assert isinstance(layer, DecoderLayer)
        if isinstance(layer.mlp, MoeMlp):
            setattr(layer, "mlp", DenseExperts(layer.mlp, load))  # noqa: B010
    return load
