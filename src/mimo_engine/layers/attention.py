"""The one attention layer of the family: it reads a `LayerSpec`, full or sliding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mimo_engine.config.model import LayerSpec
from mimo_engine.distributed.groups import Comm
from mimo_engine.distributed.plan import HeadPlan
from mimo_engine.kernels.attention import AttentionGroup, attention, write_kv
from mimo_engine.kernels.rope import apply_rope
from mimo_engine.layers.linear import Linear

__all__ = ["Attention"]


class Attention(nn.Module):
    """qkv projection, partial rope, value scale, attention, output projection (text.md 2.2).

    `heads` deals the query heads and KV slots to ranks; this rank's qkv rows are plain [Q; K; V].
    """

    def __init__(self, spec: LayerSpec, hidden_size: int, heads: HeadPlan, comm: Comm) -> None:
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
        self.qkv_proj = Linear(hidden_size, sum(self._qkv_rows))
        self.o_proj = Linear(self._num_heads * spec.v_head_dim, hidden_size)
        self.attention_sink_bias = (
            nn.Parameter(torch.empty(self._num_heads)) if spec.has_sink else None
        )

    def forward(
        self,
        x: torch.Tensor,
        rope: tuple[torch.Tensor, torch.Tensor],
        groups: Sequence[AttentionGroup],
        cache: tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None,
    ) -> torch.Tensor:
        """x [N, H] -> [N, H]. rope: (cos, sin) of this layer's kind, each [N, rotary_dim / 2].

        cache: (K pool, V pool, slots of the rows): K and V are written there and attended to from
        there. None: the rows attend to each other, and `groups` index the rows themselves.
        """
        spec = self._spec
        q, k, v = self.qkv_proj(x).split(self._qkv_rows, dim=-1)
        q = apply_rope(q.view(-1, self._num_heads, spec.qk_head_dim), *rope)
        k = apply_rope(k.view(-1, self._num_kv_heads, spec.qk_head_dim), *rope)
        # Scaled before it is cached, as every reference does: rounding depends on the order.
        v = v.view(-1, self._num_kv_heads, spec.v_head_dim) * spec.value_scale
        if cache is not None:
            k_pool, v_pool, slots = cache
            write_kv(k_pool, v_pool, k, v, slots)
            k, v = k_pool, v_pool
        out = attention(
            q,
            k,
            v,
            groups,
            num_visible_tokens=spec.num_visible_tokens,
            sink=self.attention_sink_bias,
        )
        return self._comm.all_reduce(self.o_proj(out.flatten(1)))
