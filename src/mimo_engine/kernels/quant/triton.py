"""The formats inside kernels."""

from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.quant.activations import SMALLEST_PEAK
from mimo_engine.kernels.quant.reference import FP8_MAX

__all__ = ["quantised"]

_SMALLEST_PEAK = tl.constexpr(SMALLEST_PEAK)
_FP8_MAX = tl.constexpr(FP8_MAX)
_INVERSE_MAX = tl.constexpr(1 / FP8_MAX)


@triton.jit
def quantised(x):
    """x [R, 128] float32: (codes [R, 128], scales [R]) as quant/activations.py has them."""
    peaks = tl.max(tl.abs(x), axis=1)
    is_zero = peaks <= _SMALLEST_PEAK
    inverse = tl.where(is_zero, 0.0, tl.div_rn(_FP8_MAX, tl.where(is_zero, 1.0, peaks)))
    codes = (x * inverse[:, None]).to(tl.float8e4nv)
    return codes, tl.where(is_zero, 0.0, peaks * _INVERSE_MAX)
