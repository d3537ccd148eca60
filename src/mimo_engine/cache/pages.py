"""Page ids of one group: a free list with reference counts.

Every page is either free (no references) or used (one reference for each live request that has it
in its table, and one for the prefix cache when it is published). The order in which pages are
handed out is a function of the calls alone: the page freed last goes out first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["NO_PAGE", "PagePool", "PageRun"]

NO_PAGE = -1
"""Stands in a table where a request has no page: the window has passed it."""


@dataclass(frozen=True, slots=True)
class PageRun:
    """Page ids for the logical pages `first`, `first` + 1, ... of one request in one group.

    Logical page i holds positions i * page_size ... (i + 1) * page_size - 1. Entered into a table,
    a run replaces what stood at its places.
    """

    first: int
    pages: tuple[int, ...] = ()


class PagePool:
    """Pages 0 ... num_pages - 1. Every operation costs O(1) a page."""

    __slots__ = ("_free", "_refs")

    def __init__(self, num_pages: int) -> None:
        self._refs = [0] * num_pages
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def num_pages(self) -> int:
        return len(self._refs)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def refs(self, page: int) -> int:
        return self._refs[page]

    def acquire(self, count: int) -> list[int]:
        """Take `count` free pages, each with one reference. There must be as many."""
        assert count <= len(self._free)
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._refs[page] = 1
        return pages

    def share(self, page: int) -> None:
        """One more reference to a used page."""
        assert self._refs[page] > 0
        self._refs[page] += 1

    def release(self, page: int) -> int:
        """Drop one reference and return how many are left; a page with none is free."""
        left = self._refs[page] - 1
        assert left >= 0
        self._refs[page] = left
        if not left:
            self._free.append(page)
        return left

    def check(self, holders: Mapping[int, int]) -> None:
        """Prove that used + free = total, `holders` being the references counted independently."""
        assert all(self._refs[page] == count for page, count in holders.items())
        num_used = sum(1 for refs in self._refs if refs)
        assert num_used == len(holders)
        assert len(set(self._free)) == len(self._free)
        assert all(self._refs[page] == 0 for page in self._free)
        assert num_used + len(self._free) == len(self._refs)
