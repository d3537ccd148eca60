"""Is one of two variants better, when both were measured on the same things?

Differences are taken thing by thing, so that what makes one picture harder than another cancels
out. A difference counts from two standard errors on: one in twenty would by chance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["PairedDifference", "mean_and_error", "paired_difference", "sign_test"]

DECISIVE_ERRORS = 2.0


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Of n pairs: the mean of second - first."""

    num: int
    mean: float
    standard_error: float
    """Infinite for fewer than two pairs: they say nothing about how much such pairs scatter."""

    @property
    def is_decisive(self) -> bool:
        return abs(self.mean) > DECISIVE_ERRORS * self.standard_error

    @property
    def num_needed(self) -> int | None:
        """Pairs that would roughly make a difference of this size decisive; None: no number of them
        would, or too few are there to say."""
        if self.mean == 0 or math.isinf(self.standard_error):
            return None
        return max(
            2, math.ceil(self.num * (DECISIVE_ERRORS * self.standard_error / self.mean) ** 2)
        )

    def exceeds(self, num_errors: float) -> bool:
        """Whether the mean is more than so many standard errors above 0."""
        return self.mean > num_errors * self.standard_error


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean of one or more values, and its standard error."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, math.inf
    variance = math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return mean, math.sqrt(variance / len(values))


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Of one or more pairs."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    mean, error = mean_and_error(differences)
    return PairedDifference(num=len(differences), mean=mean, standard_error=error)


def sign_test(first: Sequence[bool], second: Sequence[bool]) -> float:
    """How likely, if neither is better, so uneven a result is: exact, two-sided.

    Only pairs on which one is right and the other wrong say anything (McNemar's test).
    """
    wins = sum(a and not b for a, b in zip(first, second, strict=True))
    losses = sum(b and not a for a, b in zip(first, second, strict=True))
    num = wins + losses
    tail = sum(math.comb(num, k) for k in range(min(wins, losses) + 1)) / 2**num
    return min(1.0, 2 * tail)
