"""Long sound to chunks, cut where it is quiet.

What must hold: the chunks, joined, are the sound, sample for sample; none is longer than the
longest allowed, none shorter than `LEAST_S` unless the sound is; and where the cuts are does not
depend on how the sound came in blocks.

Loudness is the mean square over 10 ms. A chunk that has grown to its bound ends in the middle of
the quietest 0.2 s of its last third.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

__all__ = ["LEAST_S", "Cutter", "is_silent"]

LEAST_S = 0.1
"""Seconds. Far above what a frame of features needs."""

_FRAMES_A_S = 100
_QUIET_FRAMES = 20
_SILENCE = 10 ** (-70 / 10)
"""Mean square of a level of -70 dB of full scale. The hiss of a quiet room is 10 dB above it."""


class Cutter:
    """`push` every block of the sound, then `finish`: each yields the chunks that are complete."""

    def __init__(self, rate: int, longest_s: float) -> None:
        """rate: samples per second, a multiple of 100. longest_s: of a chunk, at least 1 s."""
        assert rate % _FRAMES_A_S == 0
        assert longest_s >= 1
        self._frame = rate // _FRAMES_A_S
        self._num_longest = int(longest_s * _FRAMES_A_S) * self._frame
        self._parts: list[np.ndarray] = []
        self._num_held = 0

    def push(self, samples: np.ndarray) -> Iterator[np.ndarray]:
        """samples: float32 [n], n >= 0."""
        self._parts.append(samples)
        self._num_held += len(samples)
        while self._num_held > self._num_longest:
            held = np.concatenate(self._parts)
            cut = self._quietest_in(held[: self._num_longest])
            # Copies: a chunk must not keep alive what is held, nor the other way round.
            self._parts, self._num_held = [held[cut:].copy()], len(held) - cut
            yield held[:cut].copy()

    def finish(self) -> Iterator[np.ndarray]:
        """The rest: nothing of a sound without samples."""
        if self._num_held:
            yield np.concatenate(self._parts)
        self._parts, self._num_held = [], 0

    def _quietest_in(self, samples: np.ndarray) -> int:
        """Where to cut, in samples: of several equally quiet places at the last."""
        levels = _mean_squares(samples, self._frame)
        begin = 2 * len(levels) // 3
        windows = np.lib.stride_tricks.sliding_window_view(levels[begin:], _QUIET_FRAMES)
        sums = windows.sum(axis=1)
        last = len(sums) - 1 - int(np.argmin(sums[::-1]))
        return (begin + last + _QUIET_FRAMES // 2) * self._frame


def is_silent(samples: np.ndarray, rate: int) -> bool:
    """Whether no 10 ms of it reach -70 dB of full scale. samples: float32 [n], n >= 0."""
    frame = rate // _FRAMES_A_S
    padded = np.pad(samples, (0, -len(samples) % frame))
    return bool((_mean_squares(padded, frame) < _SILENCE).all())


def _mean_squares(samples: np.ndarray, frame: int) -> np.ndarray:
    """float64 [n / frame]."""
    return np.square(samples.reshape(-1, frame), dtype=np.float64).mean(axis=1)
