"""Attention over a pool of keys and values: windows, sinks, K and V of different width."""

from mimo_engine.kernels.attention.reference import (
    AttentionGroup,
    attention,
    packed_groups,
    write_kv,
)

__all__ = ["AttentionGroup", "attention", "packed_groups", "write_kv"]
