"""`ForwardBatch`: the tensors of one forward pass, and nothing that is not a tensor or a shape.

Shape letters, here and in the model: N rows (tokens) of the batch, R rows whose logits are wanted,
H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mimo_engine.config.model import AttentionKind
from mimo_engine.kernels.attention import packed_groups
from mimo_engine.kernels.dispatch import AttentionRows

__all__ = ["ForwardBatch", "LayerCache", "MediaRows", "packed_batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerCache:
    """One layer's pools: k [slots, kv heads, Dk], v [slots, kv heads, Dv]."""

    k: torch.Tensor
    v: torch.Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaRows:
    """Rows of the batch whose embeddings come from the towers, not from the table."""

    rows: torch.Tensor
    """[M] int64 batch rows, distinct."""
    embeddings: torch.Tensor
    """[M, H]."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ForwardBatch:
    """One pass. With `caches`, K and V are written to them and read from them; without, each
    sequence attends to the rows it has in this batch (training, parity tests)."""

    token_ids: torch.Tensor
    """[N] int64."""
    positions: torch.Tensor
    """[N] int64."""
    groups: Mapping[AttentionKind, AttentionRows]
    """Which keys each row may see, by attention kind."""
    write_slots: dict[AttentionKind, torch.Tensor] | None = None
    """[N] int64 pool slots of the rows' own K and V, by attention kind."""
    caches: Sequence[LayerCache] | None = None
    """One a layer."""
    media: MediaRows | None = None

    def pools(
        self, kind: AttentionKind, cache: LayerCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """(K pool, V pool, slots of the rows) of a layer; None without a cache."""
        if cache is None:
            return None
        assert self.write_slots is not None
        return cache.k, cache.v, self.write_slots[kind]


def packed_batch(sequences: Sequence[Sequence[int]], device: str = "cpu") -> ForwardBatch:
    """A cacheless batch of whole sequences, laid end to end."""
    groups = packed_groups([len(tokens) for tokens in sequences], device)
    flat = [token for tokens in sequences for token in tokens]
    positions = [p for tokens in sequences for p in range(len(tokens))]
    return ForwardBatch(
        token_ids=torch.tensor(flat, dtype=torch.int64, device=device),
        positions=torch.tensor(positions, dtype=torch.int64, device=device),
        groups=dict.fromkeys(AttentionKind, groups),
    )
