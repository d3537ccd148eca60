"""Counter-based random numbers: the draw of a token is a function of its request alone.

A generator with state would make the n-th draw depend on everything drawn before it, so on the
batch. Here the draw for output token i of a request is a hash of (seed, i): the same after a
preemption, in any batch, on any device and on every rank, and no state is kept.

The hash is the finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words in
which every input bit changes each output bit with probability close to 1/2. It is applied to the
seed and again to the sum of that and the counter, so that neighbouring seeds (the outputs of n > 1)
share nothing. Drafting needs several numbers for one output token: each kind is a stream of its
own, a range of counters of the same seed that no other stream reaches.
"""

from __future__ import annotations

from enum import IntEnum

__all__ = ["Stream", "uniform"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_STREAM_LEN = 1 << 40


class Stream(IntEnum):
    """What a number is for. The values are part of every seeded text: they may not change."""

    TOKEN = 0
    """A token drawn from the target distribution itself."""
    ACCEPT = 1
    """The test of a draft that was drawn by chance."""
    RESIDUAL = 2
    """The token instead of a rejected draft."""
    DRAFT = 3
    """A draft."""


def uniform(seed: int, output_index: int, stream: Stream = Stream.TOKEN) -> float:
    """A number in the open interval (0, 1), uniform over the 2**52 midpoints of its cells.

    `seed` is any integer, taken modulo 2**64; `output_index` counts from 0 and is below 2**40.
    """
    counter = stream * _STREAM_LEN + output_index + 1
    word = _mix(_mix(seed + _GOLDEN) + counter * _GOLDEN)
    # 52 bits and a half: neither 0 nor 1 can come out, and each value is exact in float64.
    return ((word >> 12) + 0.5) * 2.0**-52


def _mix(word: int) -> int:
    word &= _MASK
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _MASK
    return word ^ (word >> 31)
