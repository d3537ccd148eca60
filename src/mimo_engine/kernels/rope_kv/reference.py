"""The definition, in plain torch."""

from __future__ import annotations

import torch

from mimo_engine.kernels.rope import apply_rope

__all__ = ["inverse_frequencies", "rope_and_write"]


def inverse_frequencies(
    rotary_dim: int, theta: float, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """[rotary_dim / 2] float32: theta^(-2j / rotary_dim), as `rope_tables` has them on a CPU.

    Made once a kind of layer. Always computed on the CPU, since a device's power function may
    differ in the last bit, which at position 1e6 turns an angle by a tenth.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device="cpu")
    return (1.0 / (theta ** (exponent / rotary_dim))).to(device)


def rope_and_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    qk_head_dim: int,
    v_head_dim: int,
    value_scale: float,
) -> torch.Tensor:
    """See the package. Waits for the device where some slot is negative."""
    rows = (num_heads * qk_head_dim, num_kv_heads * qk_head_dim, num_kv_heads * v_head_dim)
    q, k, v = qkv.float().sum(dim=1).to(k_pool.dtype).split(rows, dim=-1)
    angles = positions.float()[:, None] * inv_freq
    tables = angles.cos(), angles.sin()
    q = apply_rope(q.view(-1, num_heads, qk_head_dim), *tables)
    k = apply_rope(k.view(-1, num_kv_heads, qk_head_dim), *tables)
    v = v.view(-1, num_kv_heads, v_head_dim) * value_scale
    written = slots >= 0
    k_pool[slots[written]] = k[written]
    v_pool[slots[written]] = v[written]
    return q
