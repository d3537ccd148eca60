"""FP8 of activations: per row and 128 columns, made when a product needs it.

    scale = amax / 448,  code = fp8(x * (448 / amax));  0 where amax is below 1e-30

The checkpoint's FP8 weights were trained to meet such activations (text.md 2.5: dynamic). Products
of bfloat16 rows with FP8 weights do it at every number of rows, so that a chunk's numbers do not
depend on its size; float32 rows are not quantised.
"""

from __future__ import annotations

import torch

from mimo_engine.kernels.quant.reference import FP8_BLOCK, FP8_MAX

__all__ = ["SMALLEST_PEAK", "quantise_rows", "rounded_to_fp8"]

SMALLEST_PEAK = 1e-30


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [N, K] (float): float8_e4m3fn [N, K] and its scales, float32 [N, ceil(K / 128)]."""
    num_rows, num_columns = x.shape
    num_blocks = -(-num_columns // FP8_BLOCK)
    padding = num_blocks * FP8_BLOCK - num_columns
    blocks = torch.nn.functional.pad(x.float(), (0, padding)).view(num_rows, num_blocks, FP8_BLOCK)
    peaks = blocks.abs().amax(dim=-1)
    # A tensor divided by a tensor: a number divided by one is a product with its reciprocal.
    inverse = torch.where(peaks > SMALLEST_PEAK, torch.tensor(FP8_MAX) / peaks, 0.0)
    codes = (blocks * inverse[..., None]).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    scales = torch.where(peaks > SMALLEST_PEAK, peaks * (1 / FP8_MAX), 0.0)
    return codes.view(num_rows, -1)[:, :num_columns].contiguous(), scales


def rounded_to_fp8(x: torch.Tensor) -> torch.Tensor:
    """What of x [N, K] is left by `quantise_rows`, in float32."""
    codes, scales = quantise_rows(x)
    by_column = scales.repeat_interleave(FP8_BLOCK, dim=-1)[:, : x.shape[1]]
    return codes.float() * by_column
