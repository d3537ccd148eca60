"""Arrays in anonymous shared memory: how features get from the processor to the towers.

One `SharedArrays` is one memory file (memfd) with any number of arrays, so that a list of tensors
travels like a single one. Nothing has a name in the file system: when the last process that holds
the descriptor or a mapping ends, however it ends, the memory is free. The processor writes its
results straight into the arrays, and the worker reads them where they are: no copy in between.
"""

from __future__ import annotations

import mmap
import os
import weakref
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from mimo_engine.messages import ArraySpec

__all__ = ["FEATURE_DTYPES", "SharedArrays"]

FEATURE_DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(np.uint16)}
"""What numpy holds for a dtype of `ArraySpec`: it has no bfloat16, so the bits stand in uint16."""


class SharedArrays:
    """Arrays of one memory file. The arrays stay valid after `close`, as long as they are held."""

    def __init__(self, fd: int | None = None) -> None:
        """A new file, or `fd`, which is taken over."""
        if fd is None:
            fd = os.memfd_create("mimo-engine-features", os.MFD_CLOEXEC)
        self._fd = fd
        self.num_bytes = os.fstat(fd).st_size
        self.arrays: list[np.ndarray] = []
        self.specs: list[ArraySpec] = []
        # Whoever drops the object without `close` (a failed request, say) must not leak it.
        self._close = weakref.finalize(self, os.close, fd)

    @classmethod
    def from_fd(cls, fd: int, specs: Sequence[ArraySpec]) -> SharedArrays:
        """Map what another process made; takes over `fd`. ValueError: the file is too short."""
        shared = cls(fd)
        shared.specs = list(specs)
        # One mapping for all: Python keeps a descriptor open for each.
        memory = mmap.mmap(fd, shared.num_bytes) if shared.num_bytes else b""
        shared.arrays = [_view(memory, spec, spec.offset) for spec in specs]
        return shared

    def add(self, shape: tuple[int, ...], dtype: str) -> np.ndarray:
        """A new zero-filled array, to be written to."""
        spec = ArraySpec(dtype, shape, self.num_bytes)
        num_bytes = int(np.prod(shape)) * FEATURE_DTYPES[dtype].itemsize
        self.num_bytes += -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(self._fd, self.num_bytes)
        memory = mmap.mmap(self._fd, num_bytes, offset=spec.offset) if num_bytes else b""
        array = _view(memory, spec, 0)
        self.specs.append(spec)
        self.arrays.append(array)
        return array

    def fileno(self) -> int:
        """The descriptor; ValueError after `close`."""
        if not self._close.alive:
            raise ValueError("the memory file is closed")
        return self._fd

    def content_hash(self, *what: object) -> bytes:
        """16 bytes of the arrays, their types and shapes, and `what` else tells them apart."""
        digest = blake2b(repr(what).encode(), digest_size=16)
        for spec, array in zip(self.specs, self.arrays, strict=True):
            digest.update(f"{spec.dtype}{spec.shape}".encode())
            digest.update(array.reshape(-1).view(np.uint8).data)
        return digest.digest()

    def close(self) -> None:
        """Let go of the descriptor. Twice does no harm."""
        self._close()


def _view(memory: mmap.mmap | bytes, spec: ArraySpec, offset: int) -> np.ndarray:
    """The array of `spec` at byte `offset` of `memory`. ValueError: it does not lie within."""
    count = int(np.prod(spec.shape))
    if not count:
        return np.zeros(spec.shape, FEATURE_DTYPES[spec.dtype])
    return np.frombuffer(memory, FEATURE_DTYPES[spec.dtype], count, offset).reshape(spec.shape)
