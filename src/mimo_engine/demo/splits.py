"""Which problems a model trains on, and which it never sees.

A problem is what is left of an example without its phrasing, as text: its key. The hash of the key
alone says which split it belongs to, so the splits have no problem in common however many are
drawn, and no list of them has to be kept.
"""

from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Protocol, TypeVar

from mimo_engine.demo.task import Split

__all__ = ["Problem", "draw_in", "split_of"]

_TEST_SHARE = 8
"""One problem in so many is for tests."""


class Problem(Protocol):
    """What a task asks, whatever the words."""

    @property
    def key(self) -> str:
        """Equal for problems that are the same, and for no others."""
        ...


P = TypeVar("P", bound=Problem)


def split_of(key: str) -> Split:
    """The only split that the problem with this key may be in."""
    digest = blake2b(key.encode(), digest_size=8).digest()
    return "train" if int.from_bytes(digest, "big") % _TEST_SHARE else "test"


def draw_in(split: Split, draw: Callable[[], P]) -> P:
    """The first problem drawn that belongs to `split`."""
    while True:
        problem = draw()
        if split_of(problem.key) == split:
            return problem
