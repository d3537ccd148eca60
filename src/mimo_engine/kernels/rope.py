"""Partial rotary embedding: the first `rotary_dim` dims of a head rotate, halves paired."""

from __future__ import annotations

import torch

__all__ = ["apply_rope", "rope_tables"]


def rope_tables(
    positions: torch.Tensor, rotary_dim: int, theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each [N, rotary_dim / 2] fp32, for positions [N] (text.md 2.2, step 2).

    Angles are fp32, as in the references: near position 1e6 bf16 would lose them.
    """
    exponent = torch.arange(0, rotary_dim, 2, dtype=torch.float32, device=positions.device)
    inv_freq = 1.0 / (theta ** (exponent / rotary_dim))
    angles = positions.float()[:, None] * inv_freq
    return angles.cos(), angles.sin()


def apply_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x [N, heads, D]; cos and sin [N, R / 2]: dims j and j + R/2 rotate, dims from R on pass.

    Returns a new tensor in x's dtype; the products are fp32.
    """
    half = cos.shape[-1]
    cos, sin = cos[:, None], sin[:, None]
    first, second = x[..., :half].float(), x[..., half : 2 * half].float()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return torch.cat((rotated.to(x.dtype), x[..., 2 * half :]), dim=-1)
