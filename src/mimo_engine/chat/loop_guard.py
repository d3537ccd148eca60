"""Finds the token at which an output has begun to repeat itself without end.

An output of n tokens is in a loop when for some period p of 1 to MAX_PERIOD tokens its last
`bound(p)` tokens repeat with it: each of them equals the one p before, the first p of them apart.
`LoopGuard` finds the first such n, and the smallest such p, as the tokens come.

How, without a look at every period for every token: periods of more than reach / 2 and up to
`reach` tokens (the smallest reach takes all below it too) are looked for once in reach / 2 tokens,
by where the last `reach` tokens occurred before. A region of r >= reach + p tokens whose smallest
period is p <= reach has any `reach` neighbouring tokens again at the distance p and no smaller one:
a smaller one d would make gcd(d, p) a period (Fine and Wilf 1965). So the nearest occurrence names
the period, at most reach + p + reach / 2 - 1 tokens after the region began. That is within
bound(p), and what is left is to see whether the period holds until then: the token at which the
loop would be whole is known, and the tokens are compared when it has come.

A period of the last bound(p) tokens that is no multiple of a smaller one is their smallest, and one
that is a multiple has a bound no smaller; so no loop is missed and none is found late.

The cost of a token is constant on average: at each reach four tokens are searched for it, in one
`str.rfind`, and the length of a region is counted token by token once, when it is first seen.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["MAX_PERIOD", "Loop", "LoopGuard", "bound"]

MIN_REPEATS = 4
MIN_TOKENS = 256
MAX_PERIOD = 2048
"""Tokens."""

_FIRST_REACH = MIN_TOKENS // MIN_REPEATS
_REACHES = tuple(_FIRST_REACH << i for i in range((MAX_PERIOD // _FIRST_REACH).bit_length()))
_NUM_KEPT = MIN_REPEATS * MAX_PERIOD
# Tokens are searched as characters, of which those below are no halves of surrogate pairs.
_FIRST_CHARACTER = 0xE000
_CODEC = f"utf-32-{sys.byteorder[0]}e"


def bound(period: int) -> int:
    """Tokens that must repeat with `period` to make a loop."""
    return max(MIN_REPEATS * period, MIN_TOKENS)


@dataclass(frozen=True, slots=True)
class Loop:
    """Tokens that repeat."""

    period: int
    """In tokens."""
    position: int
    """Tokens of the output up to and with the one that made it a loop."""


class LoopGuard:
    """For one output. Token ids are below 1,056,768."""

    def __init__(self) -> None:
        self._kept = array("I")
        """The last tokens, _NUM_KEPT of them or more."""
        self._num_tokens = 0
        self._expected: dict[int, Loop] = {}
        """By reach: what is a loop when `position` tokens have come, if they still repeat."""
        self._next_position = 0
        """The smallest of _expected; 0: none is."""

    def push(self, token_ids: Iterable[int]) -> Loop | None:
        """Take the next tokens of the output. The first loop, and then no more is to be pushed:
        tokens after it were not taken."""
        for token_id in token_ids:
            self._kept.append(_FIRST_CHARACTER + token_id)
            self._num_tokens += 1
            if self._num_tokens % (_FIRST_REACH // 2) == 0:
                self._look()
            if self._num_tokens == self._next_position:
                found = self._check_expected()
                if found is not None:
                    return found
        if len(self._kept) > 2 * _NUM_KEPT:
            del self._kept[:-_NUM_KEPT]
        return None

    def _look(self) -> None:
        """For the period that the output has at each reach whose turn it is."""
        for reach in _REACHES:
            if self._num_tokens % (reach // 2):
                break  # nor is it the turn of a longer one, which is a multiple
            period = self._distance(reach)
            expected = self._expected.get(reach)
            # An unbroken one is where it was expected: the last look was within these tokens.
            if expected is None or expected.period != period:
                self._expected.pop(reach, None)
                if period is not None:
                    self._expected[reach] = Loop(period, self._position_of(period, reach))
        self._set_next_position()

    def _distance(self, reach: int) -> int | None:
        """How many tokens ago the last `reach` tokens stood before; None: not within `reach`."""
        text = self._kept[-2 * reach :].tobytes().decode(_CODEC)
        start = text.rfind(text[-reach:], 0, -1)
        distance = len(text) - reach - start
        is_shorter = reach > _FIRST_REACH and distance <= reach // 2
        return None if start < 0 or is_shorter else distance

    def _position_of(self, period: int, num_known: int) -> int:
        """Where a loop of `period` is whole. `num_known` of the last tokens repeat with it."""
        kept, wanted = self._kept, bound(period) - period
        most = min(wanted, len(kept) - period)
        num_repeating = num_known
        while num_repeating < most and kept[~num_repeating] == kept[~num_repeating - period]:
            num_repeating += 1
        return self._num_tokens + wanted - num_repeating

    def _check_expected(self) -> Loop | None:
        due = [one for one in self._expected.items() if one[1].position == self._num_tokens]
        for reach, loop in sorted(due, key=lambda one: one[1].period):
            tokens = self._kept[-bound(loop.period) :].tobytes()
            shift = loop.period * self._kept.itemsize
            if tokens[shift:] == tokens[:-shift]:
                return loop
            del self._expected[reach]
        self._set_next_position()
        return None

    def _set_next_position(self) -> None:
        self._next_position = min((loop.position for loop in self._expected.values()), default=0)
