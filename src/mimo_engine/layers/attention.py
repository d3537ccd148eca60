"""The one attention layer of the family: it reads a `LayerSpec`, full or sliding."""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.config.model import LayerSpec
from mimo_engine.distributed.groups import Comm
from mimo_engine.distributed.plan import HeadPlan
from mimo_engine.kernels.dispatch import AttentionRows, Kernels
from mimo_engine.kernels.rope import apply_rope
from mimo_engine.kernels.rope_kv import inverse_frequencies
from mimo_engine.layers.linear import Linear

__all__ = ["Attention"]


class Attention(nn.Module):
    """qkv projection, partial rope, value scale, attention, output projection (text.md 2.2).

    `heads` deals the query heads and KV slots to ranks; this rank's qkv rows are plain [Q; K; V].
    """

    inv_freq: torch.Tensor

    def __init__(
        self, spec: LayerSpec, hidden_size: int, heads: HeadPlan, comm: Comm, kernels: Kernels
    ) -> None:
        super().__init__()
        self._spec = spec
        self._num_heads = heads.heads_per_rank
        self._num_kv_heads = heads.slots_per_rank
        self._qkv_rows = (
            self._num_heads * spec.qk_head_dim,
            self._num_kv_heads * spec.qk_head_dim,
            self._num_kv_heads * spec.v_head_dim,
        )
        self._comm = comm
        self._kernels = kernels
        self.qkv_proj = Linear(hidden_size, sum(self._qkv_rows), kernels)
        self.o_proj = Linear(self._num_heads * spec.v_head_dim, hidden_size, kernels)
        self.attention_sink_bias = (
            nn.Parameter(torch.empty(self._num_heads)) if spec.has_sink else None
        )
        frequencies = inverse_frequencies(spec.rotary_dim, spec.rope_theta)
        self.register_buffer("inv_freq", frequencies, persistent=False)

    def forward(
        self,
        x: torch.Tensor,
        positions: torch.Tensor,
        rows: AttentionRows,
        cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """x [N, H], positions [N] -> [N, S, H], parts to be added up.

        cache: (K pool, V pool, slots of the rows): K and V are written there and attended to from
        there. None: the rows attend to each other, and `rows` index the batch itself.
        """
        spec = self._spec
        qkv = self.qkv_proj.parts(x)
        if cache is None:
            q, k, v = self._heads_of(qkv, positions)
        else:
            k, v, slots = cache
            q = self._kernels.rope_and_write(
                qkv,
                positions,
                self.inv_freq,
                k,
                v,
                slots,
                num_heads=self._num_heads,
                num_kv_heads=self._num_kv_heads,
                qk_head_dim=spec.qk_head_dim,
                v_head_dim=spec.v_head_dim,
                value_scale=spec.value_scale,
            )
        out = self._kernels.attention(
            q,
            k,
            v,
            rows,
            num_visible_tokens=spec.num_visible_tokens,
            sink=self.attention_sink_bias,
        )
        return self._comm.reduce_parts(self.o_proj.parts(out.flatten(1)))

    def _heads_of(
        self, qkv: torch.Tensor, positions: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What `rope_and_write` gives and writes, for rows that are not cached; differentiable."""
        spec = self._spec
        angles = positions.float()[:, None] * self.inv_freq
        tables = angles.cos(), angles.sin()
        q, k, v = qkv.sum(dim=1).split(self._qkv_rows, dim=-1)
        q = apply_rope(q.view(-1, self._num_heads, spec.qk_head_dim), *tables)
        k = apply_rope(k.view(-1, self._num_kv_heads, spec.qk_head_dim), *tables)
        # Scaled before it is cached, as every reference does: rounding depends on the order.
        return q, k, v.view(-1, self._num_kv_heads, spec.v_head_dim) * spec.value_scale
