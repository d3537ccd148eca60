"""Windowed-sinc resampling (audio.md 2.1), of a signal that comes block by block.

With g = gcd(source, target), o = source / g and w = target / g, output sample k * w + j is a sum
over input samples around (k * w + j) * o / w, weighted by a Hann-windowed sinc that depends on the
phase j alone:

    base = 0.99 * min(o, w)        width = ceil(6 * o / base)
    t(i, j) = clamp((-j / w + (i - width) / o) * base, -6, 6)
    weight(i, j) = sinc(pi * t) * cos(pi * t / 12)^2 * base / o,  for input k * o + i - width

Written down as one matrix of w rows and 2 * width + o columns, that is 24,000 x 44,125 numbers for
44,101 Hz, nearly all of them zero: a phase has 2 * width + 1 taps. So phases are taken in blocks of
16 neighbours, whose taps overlap, and a block is one small dense matrix.
Everything is computed in fp64 but for j / w: the original (torchaudio's transform) rounds it to
fp32, and so do we, for the same samples at any rate. The weights are stored in fp32.
"""

from __future__ import annotations

import math

import numpy as np

from mimo_engine.errors import RequestError

__all__ = ["Resampler", "resample"]

_ZERO_CROSSINGS = 6
"""Of the sinc, on each side."""
_ROLLOFF = 0.99
_MIN_RATE, _MAX_RATE = 1_000, 768_000
_BLOCK_PHASES = 16
"""Fewer: more windows to copy. More: more zeros to multiply with."""
_CHUNK_SAMPLES = 1 << 12
"""Output samples that are computed together. BLAS would give larger products to threads that cost
more than they save."""
_MAX_ROUNDING = 64
"""Output samples by which the length rule may shorten a signal of less than 2^31 samples."""


class Resampler:
    """One channel from one rate to another. `push` every block, then `finish`.

    What the calls return, joined, does not depend on how the signal was cut into blocks, but for
    the rounding of sums in fp32 (1e-7 of full scale). Equal rates: the samples as they came.
    """

    def __init__(self, source_rate: int, target_rate: int) -> None:
        """Raises RequestError for a source rate that no sound has."""
        if not _MIN_RATE <= source_rate <= _MAX_RATE:
            raise RequestError(
                f"a sample rate of {source_rate} Hz; served are {_MIN_RATE:,} to {_MAX_RATE:,} Hz: "
                "resample the sound, or state its true rate"
            )
        divisor = math.gcd(source_rate, target_rate)
        self._num_in, self._num_out = source_rate // divisor, target_rate // divisor
        # Few phases: several rounds of them make a period, so that a block is full.
        rounds = max(1, _BLOCK_PHASES // self._num_out)
        self._period_in, self._period_out = rounds * self._num_in, rounds * self._num_out
        self._width = _half_width(self._num_in, self._num_out)
        self._starts, self._weights = _weight_blocks(self._num_in, self._num_out, self._period_out)
        self._reach = int(self._starts[-1]) + self._weights.shape[1]
        # Length is known at the end alone, and may be shorter than what could be computed.
        self._held_in = -(-_MAX_ROUNDING * self._num_in // self._num_out)
        self._pending = np.zeros(self._width, np.float32)
        self._received = self._returned = 0

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The next output samples, maybe none. samples: float32 [n], n >= 0."""
        self._received += len(samples)
        if self._num_in == self._num_out:
            return samples
        self._pending = np.concatenate([self._pending, samples])
        spare = len(self._pending) - self._held_in - self._reach
        return self._take(spare // self._period_in + 1 if spare >= 0 else 0)

    def finish(self) -> np.ndarray:
        """The output samples that were waiting for more input."""
        if self._num_in == self._num_out:
            return np.zeros(0, np.float32)
        missing = max(0, self._target_length() - self._returned)
        periods = -(-missing // self._period_out)
        padding = np.zeros(periods * self._period_in + self._reach, np.float32)
        self._pending = np.concatenate([self._pending, padding])
        return self._take(periods)[:missing]

    def _target_length(self) -> int:
        """The quotient is rounded to fp32 before the ceiling, as in the original: a small fraction
        is lost, so that 1,837,421 samples at 44.1 kHz give 999,957."""
        exact = self._num_out * self._received / self._num_in
        computable = (self._received // self._num_in + 1) * self._num_out
        return min(math.ceil(np.float32(exact)), computable)

    def _take(self, periods: int) -> np.ndarray:
        """Compute the next `periods` periods, and forget the input before them."""
        if not periods:
            return np.zeros(0, np.float32)
        output = np.empty((periods, len(self._starts), self._weights.shape[2]), np.float32)
        windows = np.lib.stride_tricks.sliding_window_view(self._pending, self._weights.shape[1])
        step = max(1, _CHUNK_SAMPLES // self._period_out)
        for first in range(0, periods, step):
            last = min(periods, first + step)
            places = self._starts[:, None] + np.arange(first, last) * self._period_in
            output[first:last] = (windows[places] @ self._weights).transpose(1, 0, 2)
        self._pending = self._pending[periods * self._period_in :].copy()
        self._returned += periods * self._period_out
        return output.reshape(periods, -1)[:, : self._period_out].reshape(-1)


def resample(samples: np.ndarray, source_rate: int, target_rate: int) -> np.ndarray:
    """A whole signal at another rate. samples: float32 [n]. Raises RequestError as `Resampler`."""
    resampler = Resampler(source_rate, target_rate)
    return np.concatenate([resampler.push(samples), resampler.finish()])


def _half_width(num_in: int, num_out: int) -> int:
    """Input samples on each side of a phase's first one."""
    return math.ceil(_ZERO_CROSSINGS * num_in / (_ROLLOFF * min(num_in, num_out)))


def _weight_blocks(num_in: int, num_out: int, num_phases: int) -> tuple[np.ndarray, np.ndarray]:
    """For each block of phases: its first tap [blocks], and float32 weights [blocks, taps, phases].

    num_phases: of a period, a multiple of num_out. Phases that fill up the last block go on past
    the period, and what they give is dropped.
    """
    width = _half_width(num_in, num_out)
    size = min(_BLOCK_PHASES, num_phases)
    phases = np.arange(-(-num_phases // size) * size).reshape(-1, size)
    starts = phases * num_in // num_out
    num_taps = int((starts[:, -1] - starts[:, 0]).max()) + 2 * width + 1
    weights = np.empty((len(phases), num_taps, size), np.float32)
    base = _ROLLOFF * min(num_in, num_out)
    # Block by block: all at once, odd rates would need a gigabyte for the fp64 intermediates.
    for block, (row, start) in enumerate(zip(phases, starts[:, 0], strict=True)):
        rounds, phase = np.divmod(row, num_out)
        tap = start + np.arange(num_taps)[:, None] - rounds * num_in
        t = ((tap - width) / num_in - phase.astype(np.float32) / np.float32(num_out)) * base
        t = np.clip(t, -_ZERO_CROSSINGS, _ZERO_CROSSINGS)
        window = np.cos(np.pi * t / (2 * _ZERO_CROSSINGS)) ** 2
        weights[block] = np.sinc(t) * window * (base / num_in)
    return starts[:, 0], weights
