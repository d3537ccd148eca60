"""The search of a residual vector quantiser: exact, and the same on every device (audio.md 3.5).

    r_0 = features;  code_q = argmin_k |r_q - E_q[k]|^2;  r_{q+1} = r_q - E_q[code_q]

Residuals are fp32. Distances are computed in fp64, where the products of fp32 numbers are exact,
and rounded to fp32 once; the first of equal ones wins. So no setting of the process (TF32,
autocast) and no order of summation reaches a code, and equal features give equal codes on a CPU and
a GPU. The cost is about a hundredth of what the tokenizer computes before it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["residual_codes"]


@torch.no_grad()
def residual_codes(features: torch.Tensor, codebooks: Sequence[torch.Tensor]) -> torch.Tensor:
    """features [P, D] of any float type; codebooks: one [K_q, D] fp32 a level -> [P, Q] int64."""
    residual = features.float()
    codes = []
    for codebook in codebooks:
        assert codebook.dtype == torch.float32, codebook.dtype
        code = _squared_distances(residual.double(), codebook.double()).float().argmin(dim=1)
        codes.append(code)
        residual = residual - codebook[code]
    return torch.stack(codes, dim=1)


def _squared_distances(points: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """[P, D] and [K, D] -> [P, K]."""
    squares = points.square().sum(dim=1, keepdim=True) + entries.square().sum(dim=1)
    return squares - 2 * (points @ entries.T)
