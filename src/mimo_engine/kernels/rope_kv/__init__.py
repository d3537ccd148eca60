"""From the fused projection to what attention reads: q, and K and V in their pools (text.md 2.2).

`rope_and_write(qkv, positions, inv_freq, k_pool, v_pool, slots, *, num_heads, num_kv_heads,
qk_head_dim, v_head_dim, value_scale)`:

    qkv        [N, S, R] contiguous: parts whose sum over S is the projection, as `linear_parts`
               leaves them. In the model's dtype where S = 1, float32 otherwise. R = Hq * Dk +
               Hkv * Dk + Hkv * Dv, rows [Q; K; V], heads in order. The sum is rounded to the
               model's dtype, which is that of the pools, before anything else
    positions  [N] int64
    inv_freq   [rotary_dim / 2] float32, from `inverse_frequencies`: dims j and j + rotary_dim / 2
               of every head of Q and K rotate by the fp32 angle positions * inv_freq[j]
    k_pool     [slots, Hkv, Dk] and v_pool [slots, Hkv, Dv], contiguous, written in place at
               `slots`; V is multiplied by value_scale first
    slots      [N] int64, distinct where not negative; a row of slot -1 is not written

Returns q [N, Hq, Dk] in the model's dtype, of all rows.
"""

from mimo_engine.kernels.rope_kv.reference import inverse_frequencies, rope_and_write

__all__ = ["inverse_frequencies", "rope_and_write"]
