"""How many kernels Triton compiled, and how many it found compiled on disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton import knobs

__all__ = ["Compilations", "counted_compilations"]


@dataclass(kw_only=True, slots=True)
class Compilations:
    """Of this process, while it was counted."""

    num_compiled: int = 0
    num_found: int = 0
    seconds: float = 0.0
    """In the compiler, for both."""


@contextmanager
def counted_compilations() -> Iterator[Compilations]:
    """Counts until the end of the block; there is one such block at a time."""
    found = Compilations()

    def listen(*, times: Any, cache_hit: bool, **_: object) -> None:
        found.num_found += cache_hit
        found.num_compiled += not cache_hit
        found.seconds += times.total / 1e6

    before = knobs.compilation.listener
    knobs.compilation.listener = listen
    try:
        yield found
    finally:
        knobs.compilation.listener = before
