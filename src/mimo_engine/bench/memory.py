"""The memory that a piece of work takes for itself, as the kernel counts it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["with_peak_memory"]

_T = TypeVar("_T")


def with_peak_memory(work: Callable[[], _T]) -> tuple[_T, int]:
    """(result, highest anonymous bytes of the process over those at the start).

    Anonymous memory is what the process allocated; mapped files and shared memory are none.
    """
    before, peak, done = _anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        result = work()
    finally:
        done.set()
        watcher.join()
    return result, max(peak, _anonymous_bytes()) - before


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not report RssAnon")
