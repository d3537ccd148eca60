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
    n / (n - 1) * sum (count - r total)^2 / sum(totals)^2. None: one item alone
    tells no spread.
    """
    num, sum_totals = len(counts), sum(totals)
    rate = sum(counts) / sum_totals
    if num < 2:
        return None
    squares = math.fsum((c - rate * t) ** 2 for c, t in zip(counts, totals, strict=True))
    spread = _Z * math.sqrt(num / (num - 1) * squares) / sum_totals
    return max(0.0, rate - spread), rate + spread
