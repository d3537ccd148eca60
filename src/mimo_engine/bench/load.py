"""How fast a checkpoint loads, against what the disk gives, and how much memory that takes.

    disk      the files read from end to end, not in the page cache
    load      `load_checkpoint` in its two forms, files not in the page cache
    anonymous the process's anonymous memory at its highest, over what it was before, less the
              bytes of the loaded parameters: what loading takes for itself

The page cache is asked to drop the files before each pass (posix_fadvise), which works for files on
a disk and not for those on tmpfs.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeVar

import torch

from mimo_engine.bench.record import append_result
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.config.model import load_model_config

__all__ = ["main", "measure"]

_READ_BYTES = 8 << 20
_LIMIT_MB = 300
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One pass over all files. Rates count the bytes of the files."""

    what: str
    seconds: float
    gb_per_s: float
    share_of_disk: float
    parameters_mb: float
    extra_anonymous_mb: float


def _forget(paths: list[Path]) -> None:
    """Ask the kernel to drop the files from its page cache."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _read_all(paths: list[Path]) -> int:
    total = 0
    buffer = bytearray(_READ_BYTES)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while count := file.readinto(buffer):
                total += count
    return total


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    raise OSError("the kernel does not report RssAnon")


def _with_peak(work: Callable[[], _T]) -> tuple[_T, float, int]:
    """(result, seconds, highest anonymous bytes over those at the start)."""
    before, peak, done = _anonymous_bytes(), 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = perf_counter()
    try:
        result = work()
        seconds = perf_counter() - start
    finally:
        done.set()
        watcher.join()
    return result, seconds, max(peak, _anonymous_bytes()) - before


def measure(model_dir: Path) -> list[Measurement]:
    """The raw disk, then each form of loading."""
    paths = sorted(model_dir.glob("*.safetensors"))
    config = load_model_config(model_dir)
    _forget(paths)
    num_bytes, disk_seconds, _ = _with_peak(lambda: _read_all(paths))
    rows = [_row("disk", num_bytes, disk_seconds, disk_seconds, 0, 0)]
    for what, keep_quantised, dtype in (
        ("load, bits as stored", True, torch.bfloat16),
        ("load, decoded to bf16", False, torch.bfloat16),
    ):
        _forget(paths)
        weights, seconds, peak = _with_peak(
            lambda keep=keep_quantised, dtype=dtype: load_checkpoint(
                model_dir, config, dtype=dtype, keep_quantised=keep
            )
        )
        held = sum(weight.nbytes for weight in weights.values())
        rows.append(_row(what, num_bytes, seconds, disk_seconds, held, peak - held))
        del weights
    return rows


def _row(
    what: str, num_bytes: int, seconds: float, disk_seconds: float, held: int, extra: int
) -> Measurement:
    return Measurement(
        what=what,
        seconds=seconds,
        gb_per_s=num_bytes / seconds / 1e9,
        share_of_disk=disk_seconds / seconds,
        parameters_mb=held / 1e6,
        extra_anonymous_mb=extra / 1e6,
    )


def main(model: str) -> None:
    """Print the table and append one JSON line. Fails when loading takes too much memory."""
    rows = measure(Path(model))
    print(f"{'':<22} {'s':>7} {'GB/s':>6} {'of disk':>8} {'params MB':>10} {'extra MB':>9}")
    for row in rows:
        print(
            f"{row.what:<22} {row.seconds:>7.2f} {row.gb_per_s:>6.2f} {row.share_of_disk:>8.0%} "
            f"{row.parameters_mb:>10.0f} {row.extra_anonymous_mb:>9.0f}"
        )
    append_result("load", {"config": {"model": "random"}, "rows": [asdict(row) for row in rows]})
    assert all(row.extra_anonymous_mb <= _LIMIT_MB for row in rows), "loading takes too much memory"
