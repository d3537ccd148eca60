"""The text model, top to bottom: embedding, hybrid decoder layers, final norm, head.

    x = embed(tokens), and rows of the towers where media stand
    for each layer:  x += attention(norm(x));  x += mlp(norm(x))
    hidden = norm(x);  logits = head(hidden)

What a layer adds to x is added by the norm that follows, so that a kernel can do both.

Facts: text.md 2. The same code runs with a paged cache (serving) and without one (training,
parity); it reads a `ForwardBatch` and nothing else. Attribute names are the checkpoint's.
"""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.config.model import LayerSpec, MlpKind, ModelConfig
from mimo_engine.distributed.groups import Comm, SingleRank
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.dispatch import REFERENCE, Kernels
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
        self,
        config: ModelConfig,
        spec: LayerSpec,
        plan: ParallelPlan,
        comm: Comm,
        kernels: Kernels,
    ) -> None:
        super().__init__()
        hidden_size = config.hidden_size
        width = plan.mlp_columns(spec.intermediate_size).local_size
        self.kind = spec.attention
        self.input_layernorm = RMSNorm(hidden_size, config.norm_eps, kernels)
        self.self_attn = Attention(spec, hidden_size, plan.heads(spec), comm, kernels)
        self.post_attention_layernorm = RMSNorm(hidden_size, config.norm_eps, kernels)
        if spec.mlp is MlpKind.MOE:
            assert config.router is not None
            self.mlp = MoeMlp(hidden_size, width, config.router, comm, kernels)
        else:
            self.mlp = DenseMlp(hidden_size, width, comm, kernels)

    def forward(
        self,
        x: torch.Tensor,
        parts: torch.Tensor | None,
        batch: ForwardBatch,
        cache: LayerCache | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x [N, H] and what is still to be added to it, parts [N, S, H]; the same of the result."""
        x, normed = self.input_layernorm.add(x, parts)
        attended = self.self_attn(
            normed, batch.positions, batch.groups[self.kind], batch.pools(self.kind, cache)
        )
        x, normed = self.post_attention_layernorm.add(x, attended)
        return x, self.mlp(normed)


class TextModel(nn.Module):
    """One rank's share of the decoder; `SingleRank` and the default plan are the whole of it."""

    def __init__(
        self,
        config: ModelConfig,
        plan: ParallelPlan | None = None,
        comm: Comm | None = None,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        plan = plan or ParallelPlan()
        comm = comm or SingleRank()
        vocabulary = plan.vocabulary(config.vocab_size)
        self.config = config
        self.embed_tokens = Embedding(
            vocabulary.local_size,
            config.hidden_size,
            first_row=vocabulary.start(plan.tp_rank),
            vocab_size=config.vocab_size,
            comm=comm,
        )
        self.layers = nn.ModuleList(
            DecoderLayer(config, spec, plan, comm, kernels) for spec in config.layers
        )
        self.norm = RMSNorm(config.hidden_size, config.norm_eps, kernels)
        self.lm_head = Head(
            vocabulary.local_size,
            config.hidden_size,
            vocab_size=config.vocab_size,
            comm=comm,
            kernels=kernels,
        )

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: dict[str, Weight],
        plan: ParallelPlan | None = None,
        comm: Comm | None = None,
        kernels: Kernels = REFERENCE,
    ) -> TextModel:
        """A model that holds `weights` (checkpoint/load.py) without copying them."""
        with torch.device("meta"):
            model = cls(config, plan, comm, kernels)
        assign_weights(model, weights)
        return model

    def forward(self, batch: ForwardBatch) -> torch.Tensor:
        """The hidden state after the final norm, [N, H]: what the head and the drafts read."""
        x = self.embed_tokens(batch.token_ids)
        if batch.media is not None:
            x = x.index_copy(0, batch.media.rows, batch.media.embeddings.to(x.dtype))
        parts = None
        for index, layer in enumerate(self.layers):
            assert isinstance(layer, DecoderLayer)
            cache = None if batch.caches is None else batch.caches[index]
            x, parts = layer(x, parts, batch, cache)
        return self.norm.add(x, parts)[1]

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden [R, H] -> logits [R, V] fp32."""
        return self.raw_logits(hidden).float()

    def raw_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """`logits` in hidden's dtype, as they are computed."""
        return self.lm_head(hidden)
