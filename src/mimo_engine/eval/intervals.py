"""95 % confidence intervals of what an evaluation measures.

They say how far the score on other items of the same kind may lie, and nothing about items of
another kind. With greedy decoding the model itself adds no chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["Interval", "rate_interval", "wilson_interval"]

Interval = tuple[float, float]

_Z = 1.959963984540054
"""97.5 % of the standard normal distribution lie below."""
_STUDENT_T = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
"""The same of Student's with 1, 2, ... degrees of freedom."""


def wilson_interval(num_right: int, num: int) -> Interval:
    """Of a share of `num` > 0 independent items: Wilson's score interval.

    With p = right / n it is (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n).
    Unlike the normal one it holds for few items and near 0 and 1, and never leaves 0 ... 1.
    """
    share = num_right / num
    centre = share + _Z**2 / (2 * num)
    spread = _Z * math.sqrt(share * (1 - share) / num + _Z**2 / (4 * num**2))
    scale = 1 + _Z**2 / num
    # At both ends the formula is exact and floating point is not.
    low = 0.0 if num_right == 0 else (centre - spread) / scale
    high = 1.0 if num_right == num else (centre + spread) / scale
    return low, high


def rate_interval(counts: Sequence[int], totals: Sequence[int]) -> Interval | None:
    """Of sum(counts) / sum(totals), such as word errors of words, where items are independent and
    what is within an item is not.

    The usual interval of a ratio estimator: with r the ratio, its variance is
    n / (n - 1) * sum (count - r total)^2 / sum(totals)^2, and Student's t with n - 1 degrees of
    freedom says how many deviations to go. None: one item alone tells no spread, nor do items that
    all have the same ratio, such as a few clips without an error.
    """
    num, sum_counts, sum_totals = len(counts), sum(counts), sum(totals)
    # As integers, times sum_totals: what does not differ is then exactly 0.
    pairs = zip(counts, totals, strict=True)
    squares = sum((c * sum_totals - sum_counts * t) ** 2 for c, t in pairs)
    if squares == 0:
        return None
    rate, variance = sum_counts / sum_totals, num / (num - 1) * (squares / sum_totals**4)
    spread = _student_t(num - 1) * math.sqrt(variance)
    return max(0.0, rate - spread), rate + spread


def _student_t(freedom: int) -> float:
    """97.5 % of Student's distribution lie below: by table, then by the first two terms of the
    Cornish-Fisher expansion in 1 / freedom, which leave less than 0.003.
    """
    if freedom <= len(_STUDENT_T):
        return _STUDENT_T[freedom - 1]
    first = (_Z**3 + _Z) / 4
    second = (5 * _Z**5 + 16 * _Z**3 + 3 * _Z) / 96
    return _Z + first / freedom + second / freedom**2
