"""What the kernels share: a logit as it counts, its weight, its place in the order, the number.

All but one subtraction and one product of a weight are integers, so nothing here depends on how a
compiler contracts or a device rounds (reference.py has the mathematics).
"""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of kernels have Triton's types)
from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.sampling.reference import (
    FRACTION_BITS,
    LARGEST_Z,
    MIN_TEMPERATURE,
    OCTAVES_PER_NAT,
    POLYNOMIAL,
    UNIT,
    UNIT_BITS,
)

__all__ = [
    "bin_of",
    "distance",
    "is_greedy",
    "least_weight",
    "load_logits",
    "logit_of",
    "order",
    "row_scale",
    "share",
    "token_of",
    "uniform",
    "weight",
]

_FRACTION_BITS = tl.constexpr(FRACTION_BITS)
_FRACTION = tl.constexpr(2**FRACTION_BITS - 1)
_LARGEST_Z = tl.constexpr(LARGEST_Z)
_MIN_TEMPERATURE = tl.constexpr(MIN_TEMPERATURE)
_OCTAVES_PER_NAT = tl.constexpr(OCTAVES_PER_NAT)
_UNIT = tl.constexpr(float(UNIT))
_UNIT_SHIFT = tl.constexpr(UNIT_BITS - 31)
_C0, _C1, _C2, _C3, _C4, _C5, _C6 = (tl.constexpr(value) for value in POLYNOMIAL)
_BIN_SHIFT = tl.constexpr(FRACTION_BITS - 6)
"""Bins of 1/64 octave."""


@triton.jit
def load_logits(logits_row, mask_row, ids, num_tokens, num_stored, HAS_MASK: tl.constexpr):
    """Logits (float32) of `ids` in one row: -inf where forbidden, inf where NaN."""
    # Up to the end of what is stored, a multiple of the width of a load as `num_tokens` is not.
    x = tl.load(logits_row + ids, mask=ids < num_stored, other=0.0).to(tl.float32)
    allowed = ids < num_tokens
    if HAS_MASK:
        words = tl.load(mask_row + (ids >> 5), mask=allowed, other=0)
        allowed &= ((words >> (ids & 31)) & 1) == 1
    x = tl.where(x == x, x, float("inf"))
    return tl.where(allowed, x, float("-inf"))


@triton.jit
def is_greedy(temperature):
    return temperature < _MIN_TEMPERATURE


@triton.jit
def row_scale(temperature):
    """2**-26 octaves a unit of logit (float32); of a greedy row anything finite."""
    divisor = tl.where(is_greedy(temperature), 1.0, temperature).to(tl.float64)
    return (tl.full((), _OCTAVES_PER_NAT, tl.float64) / divisor).to(tl.float32)


@triton.jit
def distance(d, scale):
    """z (uint32) of a difference of logits."""
    return tl.minimum(tl.maximum(d * scale, 0.0), _LARGEST_Z).to(tl.uint32)


@triton.jit
def _halving(z):
    """2**-fraction of z, in units of 2**-31 (uint32)."""
    fraction = (z & _FRACTION) << (32 - _FRACTION_BITS)
    total = tl.full(z.shape, _C6, tl.uint32)
    total = tl.full(z.shape, _C5, tl.uint32) - tl.umulhi(total, fraction)
    total = tl.full(z.shape, _C4, tl.uint32) - tl.umulhi(total, fraction)
    total = tl.full(z.shape, _C3, tl.uint32) - tl.umulhi(total, fraction)
    total = tl.full(z.shape, _C2, tl.uint32) - tl.umulhi(total, fraction)
    total = tl.full(z.shape, _C1, tl.uint32) - tl.umulhi(total, fraction)
    return tl.full(z.shape, _C0, tl.uint32) - tl.umulhi(total, fraction)


@triton.jit
def weight(z):
    """2**44 * 2**-z (int64), cut."""
    unit = _halving(z).to(tl.uint64) << _UNIT_SHIFT
    return (unit >> (z >> _FRACTION_BITS).to(tl.uint64)).to(tl.int64)


@triton.jit
def share(sums, z):
    """`sums` (int64, at most 2**54) * 2**-z, cut."""
    factor = _halving(z).to(tl.int64)
    high, low = sums >> 31, sums & 0x7FFFFFFF
    return (high * factor + ((low * factor) >> 31)) >> (z >> _FRACTION_BITS).to(tl.int64)


@triton.jit
def least_weight(min_p):
    """The least weight (int64) that min_p keeps; 0 without it."""
    return tl.ceil(min_p.to(tl.float64) * _UNIT).to(tl.int64)


@triton.jit
def bin_of(z, NUM_BINS: tl.constexpr):
    """Bins (int32) in falling order of weight; the last has all that is beyond."""
    return tl.minimum((z >> _BIN_SHIFT).to(tl.int32), NUM_BINS - 1)


@triton.jit
def order(x, ids):
    """An integer (int64) that falls with the logit, and among equal ones as the id rises."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)  # -0.0 equals 0.0
    key = bits ^ ((bits >> 31) & 0x7FFFFFFF)
    return (key.to(tl.int64) << 32) | (0xFFFFFFFF - ids.to(tl.int64))


@triton.jit
def logit_of(place):
    """The logit (float32) in an `order`."""
    key = (place >> 32).to(tl.int32)
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def token_of(place):
    """The id (int64) in an `order`."""
    return 0xFFFFFFFF - (place & 0xFFFFFFFF)


@triton.jit
def uniform(seed, counter):
    """sampling/random.py's number (float64) of an int64 seed and counter."""
    golden = tl.full((), 0x9E3779B97F4A7C15, tl.uint64)
    word = _mix(seed.to(tl.uint64) + golden)
    word = _mix(word + (counter.to(tl.uint64) + 1) * golden)
    return ((word >> 12).to(tl.float64) + 0.5) * 2.220446049250313e-16  # 2**-52


@triton.jit
def _mix(word):
    word = (word ^ (word >> 30)) * tl.full((), 0xBF58476D1CE4E5B9, tl.uint64)
    word = (word ^ (word >> 27)) * tl.full((), 0x94D049BB133111EB, tl.uint64)
    return word ^ (word >> 31)
