"""The K and V tensors of every layer, in the sizes that `CacheLayout` decided."""

from __future__ import annotations

import torch

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.config.model import AttentionKind, ModelConfig
from mimo_engine.model.batch import LayerCache

__all__ = ["allocate_pools"]


def allocate_pools(
    config: ModelConfig,
    layout: CacheLayout,
    *,
    kv_heads: dict[AttentionKind, int],
    dtype: torch.dtype,
    device: torch.device,
    num_draft_layers: int = 0,
) -> list[LayerCache]:
    """One LayerCache a layer, draft layers last: K [slots, kv heads, Dk], V [slots, kv heads, Dv].

    slots = pages of the layer's group * page_size; kv_heads: this rank's, by attention kind.
    Zero-filled: attention multiplies a masked V row by a weight of 0, which must not meet a NaN. On
    the CPU the operating system commits the memory page by page as it is first written.
    """
    num_pages = {
        AttentionKind.FULL: layout.num_full_pages,
        AttentionKind.SLIDING: layout.num_sliding_pages,
    }
    pools = []
    for spec in (*config.layers, *[config.mtp_layer] * num_draft_layers):
        slots = num_pages[spec.attention] * layout.page_size
        heads = kv_heads[spec.attention]
        pools.append(
            LayerCache(
                k=torch.zeros(slots, heads, spec.qk_head_dim, dtype=dtype, device=device),
                v=torch.zeros(slots, heads, spec.v_head_dim, dtype=dtype, device=device),
            )
        )
    return pools
