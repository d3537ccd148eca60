"""The text model, top to bottom: embedding, hybrid decoder layers, final norm, head.

    x = embed(tokens), and rows of the towers where media stand
    for each layer:  x += attention(norm(x));  x += mlp(norm(x))
    hidden = norm(x);  logits = head(hidden)

Facts: text.md 2. The same code runs with a paged cache (serving) and without one (training,
parity); it reads a `ForwardBatch` and nothing else. Attribute names are the checkpoint's.
"""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.config.model import AttentionKind, LayerSpec, MlpKind, ModelConfig
from mimo_engine.distributed.groups import Comm, SingleRank
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.rope import rope_tables
from mimo_engine.layers.attention import Attention
from mimo_engine.layers.embedding import Embedding, Head
from mimo_engine.layers.mlp import DenseMlp, MoeMlp
from mimo_engine.layers.norm import RMSNorm
from mimo_engine.layers.weight_format import Weight, assign_weights
from mimo_engine.model.batch import ForwardBatch, LayerCache

__all__ = ["DecoderLayer", "TextModel"]


class DecoderLayer(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(
        self, config: ModelConfig, spec: LayerSpec, plan: ParallelPlan, comm: Comm
    ) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        width = plan.mlp_columns(spec.intermediate_size).local_size
        self.kind = spec.attention
        self.input_layernorm = RMSNorm(hidden_size, config.norm_eps)
        self.self_attn = Attention(spec, hidden_size, plan.heads(spec), comm)
        self.post_attention_layernorm = RMSNorm(hidden_size, config.norm_eps)
        if spec.mlp is MlpKind.MOE:
            assert config.router is not None
            self.mlp = MoeMlp(hidden_size, width, config.router, comm)
        else:
            self.mlp = DenseMlp(hidden_size, width, comm)

    def forward(
        self,
        x: torch.Tensor,
        batch: ForwardBatch,
        rope: tuple[torch.Tensor, torch.Tensor],
        cache: LayerCache | None,
    ) -> torch.Tensor:
        """x [N, H] -> [N, H]."""
        layer_cache = None
        if cache is not None:
            assert batch.write_slots is not None
            layer_cache = (cache.k, cache.v, batch.write_slots[self.kind])
        attended = self.self_attn(
            self.input_layernorm(x), rope, batch.groups[self.kind], layer_cache
        )
        x = x + attended
        return x + self.mlp(self.post_attention_layernorm(x))


class TextModel(nn.Module):
    """One rank's share of the decoder; `SingleRank` and the default plan are the whole of it."""

    def __init__(
        self,
        config: ModelConfig,
        plan: ParallelPlan | None = None,
        comm: Comm | None = None,
    ) -> None:
        super().__init__()
        plan = plan or ParallelPlan()
        comm = comm or SingleRank()
        vocabulary = plan.vocabulary(config.vocab_size)
        self._rope = {spec.attention: (spec.rotary_dim, spec.rope_theta) for spec in config.layers}
        self.embed_tokens = Embedding(
            vocabulary.local_size,
            config.hidden_size,
            first_row=vocabulary.start(plan.tp_rank),
            comm=comm,
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, spec, plan, comm) for spec in config.layers
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.lm_head = Head(
            vocabulary.local_size, config.hidden_size, vocab_size=config.vocab_size, comm=comm
        )

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: dict[str, Weight],
        plan: ParallelPlan | None = None,
        comm: Comm | None = None,
    ) -> TextModel:
        """A model that holds `weights` (checkpoint/load.py) without copying them."""
        with torch.device("meta"):
            model = cls(config, plan, comm)
        assign_weights(model, weights)
        return model

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """The hidden state after the final norm, [N, H]: what the head and the drafts read."""
        rope: dict[AttentionKind, tuple[torch.Tensor, torch.Tensor]] = {
            kind: rope_tables(batch.positions, *parameters)
            for kind, parameters in self._rope.items()
        }
        x = self.embed_tokens(batch.token_ids)
        if batch.media is not None:
            x = x.index_copy(0, batch.media.rows, batch.media.embeddings.to(x.dtype))
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            cache = None if batch.caches is None else batch.caches[index]
            x = layer(x, batch, rope[layer.kind], cache)
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [R, H] -> logits [R, V] fp32."""
        return self.lm_head(hidden)
