"""Attention over a pool of keys and values: windows, sinks, K and V of different width.

`paged_attention(q, k_pool, v_pool, rows, *, num_visible_tokens, sink)` is what serves: softmax
attention, scale 1/sqrt(Dk) (text.md 2.2, steps 4 to 7), over the keys that page tables name.

    q                   [N, Hq, Dk] contiguous; its dtype is that of the pools and of the result
    k_pool, v_pool      [slots, Hkv, Dk] and [slots, Hkv, Dv] contiguous; Hq a multiple of Hkv,
                        query head h reads KV head h // (Hq / Hkv)
    rows                `PagedRows`
    num_visible_tokens  a row at position p sees p - num_visible_tokens + 1 ... p; None: 0 ... p
    sink                [Hq] a logit in the denominator, unscaled, without a value; None: none

Returns [N, Hq, Dv]: 0 for rows that see nothing, and anything for batch rows of no sequence. No
slot is read that is not seen by some row, so that what is in others does not matter.

`attention` does the same for keys that are named slot by slot, in groups of equally long sequences:
the plain form that models use on a CPU and without a cache.
"""

from mimo_engine.kernels.attention.reference import (
    AttentionGroup,
    attention,
    packed_groups,
    paged_attention,
    write_kv,
)
from mimo_engine.kernels.attention.rows import PagedRows

__all__ = [
    "AttentionGroup",
    "PagedRows",
    "attention",
    "packed_groups",
    "paged_attention",
    "write_kv",
]
