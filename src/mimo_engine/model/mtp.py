"""The draft layers (MTP): from the target's hidden state and a later token, a guess further ahead.

    layer k, row j:  e = embedding of x[j+1+k];  h = the target's hidden state of x[j]
    z  = eh_proj [norm(e); norm(h)]
    z += sliding attention(norm(z));  z += mlp(norm(z))
    norm(z) through the target's head guesses x[j+2+k]

Facts: mtp.md 5.3 and 5.4. h comes after the target's final norm, as `TextModel` returns it. The
layers are not chained: each reads the same h at the same position j, whatever its k, and none reads
another's output. Each attends to keys and values of its own, at the rows' positions and slots of
the target's sliding layers, so the target's `ForwardBatch` serves the drafts of its rows as it is.
Embedding and head are the target's: callers embed (or put media rows in place) and call the head.
Attribute names are the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from mimo_engine.config.model import ModelConfig
from mimo_engine.distributed.groups import Comm, SingleRank
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.dispatch import REFERENCE, Kernels
from mimo_engine.layers.attention import Attention
from mimo_engine.layers.linear import Linear
from mimo_engine.layers.mlp import DenseMlp
from mimo_engine.layers.norm import RMSNorm
from mimo_engine.layers.weight_format import Weight, assign_weights
from mimo_engine.model.batch import ForwardBatch, LayerCache

__all__ = [
    "MtpLayer",
    "MtpLayers",
    "ShiftedTokens",
    "SplitWeights",
    "shifted_tokens",
    "split_mtp_weights",
]

_PREFIX = "mtp."


class MtpLayer(nn.Module):
    """One draft layer. `eh_proj` is whole on every rank; attention and MLP are cut as the plan has
    it."""

    def __init__(
        self, config: ModelConfig, plan: ParallelPlan, comm: Comm, kernels: Kernels
    ) -> None:
        super().__init__()
        hidden_size, eps, spec = config.hidden_size, config.norm_eps, config.mtp_layer
        width = plan.mlp_columns(spec.intermediate_size).local_size
        self.kind = spec.attention
        self.enorm = RMSNorm(hidden_size, eps, kernels)
        self.hnorm = RMSNorm(hidden_size, eps, kernels)
        self.eh_proj = Linear(2 * hidden_size, hidden_size, kernels)
        self.input_layernorm = RMSNorm(hidden_size, eps, kernels)
        self.self_attn = Attention(spec, hidden_size, plan.heads(spec), comm, kernels)
        self.pre_mlp_layernorm = RMSNorm(hidden_size, eps, kernels)
        self.mlp = DenseMlp(hidden_size, width, comm, kernels)
        self.final_layernorm = RMSNorm(hidden_size, eps, kernels)

    def forward(
        self,
        embeddings: torch.Tensor,
        hidden: torch.Tensor,
        batch: ForwardBatch,
        cache: LayerCache | None,
    ) -> torch.Tensor:
        """embeddings, hidden [N, H] -> [N, H], after the final norm; see `MtpLayers.forward`."""
        x = self.eh_proj(torch.cat((self.enorm(embeddings), self.hnorm(hidden)), dim=-1))
        x, normed = self.input_layernorm.add(x, None)
        attended = self.self_attn(
            normed, batch.positions, batch.groups[self.kind], batch.pools(self.kind, cache)
        )
        x, normed = self.pre_mlp_layernorm.add(x, attended)
        return self.final_layernorm.add(x, self.mlp(normed))[1]


class MtpLayers(nn.Module):
    """One rank's share of all draft layers."""

    def __init__(
        self,
        config: ModelConfig,
        num_layers: int,
        plan: ParallelPlan | None = None,
        comm: Comm | None = None,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        plan = plan or ParallelPlan()
        comm = comm or SingleRank()
        self.layers = nn.ModuleList(
            MtpLayer(config, plan, comm, kernels) for _ in range(num_layers)
        )

    @classmethod
    def from_weights(
        cls,
        config: ModelConfig,
        weights: Mapping[str, Weight],
        plan: ParallelPlan | None = None,
        comm: Comm | None = None,
        kernels: Kernels = REFERENCE,
    ) -> MtpLayers:
        """Draft layers that hold `weights`, named `mtp.layers.N.*`, without copying them; as many
        as the names number."""
        assert all(name.startswith(_PREFIX) for name in weights), list(weights)
        own = {name.removeprefix(_PREFIX): weight for name, weight in weights.items()}
        num_layers = len({name.split(".")[1] for name in own})
        with torch.device("meta"):
            model = cls(config, num_layers, plan, comm, kernels)
        assign_weights(model, own)
        return model

    def forward(
        self,
        index: int,
        *,
        embeddings: torch.Tensor,
        hidden: torch.Tensor,
        batch: ForwardBatch,
        cache: LayerCache | None = None,
    ) -> torch.Tensor:
        """What draft layer `index` gives the target's head, [N, H].

        embeddings [N, H]: of the token 1 + index after each row's own. hidden [N, H]: what the
        target returned for the row. batch: positions, groups and slots of the rows; its tokens,
        media and caches are the target's and not read. cache: this layer's own pools, addressed by
        the batch's sliding slots; None with a cacheless batch.
        """
        assert (cache is None) == (batch.write_slots is None), "the batch is of the other kind"
        layer = self.layers[index]
        assert isinstance(layer, MtpLayer)
        return layer(embeddings, hidden, batch, cache)


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitWeights:
    """What `load_checkpoint` returned, by the model that holds it."""

    text: dict[str, Weight]
    """For `TextModel.from_weights`."""
    mtp: dict[str, Weight]
    """For `MtpLayers.from_weights`; empty when no draft layer was loaded."""


def split_mtp_weights(weights: Mapping[str, Weight]) -> SplitWeights:
    """Target and draft layers, which `load_checkpoint(num_mtp_layers=...)` returns together."""
    text: dict[str, Weight] = {}
    mtp: dict[str, Weight] = {}
    for name, weight in weights.items():
        (mtp if name.startswith(_PREFIX) else text)[name] = weight
    return SplitWeights(text=text, mtp=mtp)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShiftedTokens:
    """For each row of a batch, a later token of its sequence."""

    token_ids: torch.Tensor
    """[N] int64; 0 where the sequence has ended."""
    is_known: torch.Tensor
    """[N] bool: whether the sequence goes that far."""


def shifted_tokens(batch: ForwardBatch, shift: int) -> ShiftedTokens:
    """Row j of each sequence gets x[j + shift]. batch: whole sequences end to end, as
    `packed_batch` makes it.

    Draft layer k reads shift 1 + k and is scored against shift 2 + k, on the rows where the latter
    is known. The other rows reach no scored one: attention looks back, and they come last.
    """
    assert shift >= 0
    tokens, positions = batch.token_ids, batch.positions
    source = torch.arange(shift, shift + len(tokens), device=tokens.device)
    is_inside = source < len(tokens)
    source = source.masked_fill(~is_inside, 0)
    # Rows of one sequence, and only they, lie as far apart as their positions.
    is_known = is_inside & (positions[source] == positions + shift)
    return ShiftedTokens(token_ids=tokens[source].masked_fill(~is_known, 0), is_known=is_known)
