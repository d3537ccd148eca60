"""Log-mel spectrogram (audio.md 2.2), of a signal that comes block by block.

Frame t is the spectrum of fft_size samples around sample hop * t, under a periodic Hann window;
before the first and after the last sample the signal is mirrored at that sample. A mel is a
triangle-weighted sum of the magnitudes (not their squares), and what is returned is
ln(max(mel, 1e-7)): no other normalisation. n samples give 1 + n // hop frames.

Window, transform and filterbank are computed in fp64. The original computes them in fp32, where
the mel points alone depend on the processor's vector width and move a log-mel by up to 2e-5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.multimodal.features import SoundTooShortError

__all__ = ["LogMel", "log_mel", "mel_filterbank"]

_FLOOR = np.float32(1e-7)
_CHUNK_FRAMES = 256
"""Frames that are transformed together: some 2 MB at a time."""
_BAND_MELS = 8
"""Mels that are summed together, from the few bins that they reach. Products of this size also
stay on one thread: BLAS gives larger ones to threads that cost more than they save."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Band:
    """Neighbouring mels, and the bins that any of them reaches."""

    bins: slice
    mels: slice
    weights: np.ndarray
    """float32 [bins, mels]."""


class LogMel:
    """`push` every block of the signal, then `finish`: each returns the next frames.

    What the calls return, joined, does not depend on how the signal was cut into blocks.
    """

    def __init__(self, config: ProcessorConfig) -> None:
        # So the samples that wait for a frame always hold those to mirror at the end.
        assert config.hop < config.fft_size // 2
        self._size, self._hop, self._rate = config.fft_size, config.hop, config.sampling_rate
        self._margin = config.fft_size // 2
        turn = 2 * np.pi * np.arange(config.fft_size) / config.fft_size
        self._window = 0.5 - 0.5 * np.cos(turn)
        self._bands = _bands(mel_filterbank(config))
        self._num_mels = config.num_mels
        self._pending = np.zeros(0, np.float32)
        self._has_start = False
        self.num_samples = 0
        """Received so far."""

    def push(self, samples: np.ndarray) -> np.ndarray:
        """The frames [k, mels] that are complete now, k >= 0. samples: float32 [n], n >= 0."""
        self.num_samples += len(samples)
        self._pending = np.concatenate([self._pending, samples])
        if not self._has_start and self.num_samples > self._margin:
            mirrored = self._pending[self._margin : 0 : -1]
            self._pending = np.concatenate([mirrored, self._pending])
            self._has_start = True
        return self._take() if self._has_start else self._no_frames()

    def finish(self) -> np.ndarray:
        """The frames [k, mels] that reach past the end. Raises SoundTooShortError."""
        if not self._has_start:
            least = self._margin + 1
            raise SoundTooShortError(
                f"the sound has {self.num_samples} samples at {self._rate:,} Hz, and the least is "
                f"{least} ({1000 * least / self._rate:.0f} ms): send a longer one"
            )
        mirrored = self._pending[-2 : -2 - self._margin : -1]
        self._pending = np.concatenate([self._pending, mirrored])
        return self._take()

    def _take(self) -> np.ndarray:
        """All complete frames, and forget the samples that no later one needs."""
        if len(self._pending) < self._size:
            return self._no_frames()
        windows = np.lib.stride_tricks.sliding_window_view(self._pending, self._size)[:: self._hop]
        frames = np.empty((len(windows), self._num_mels), np.float32)
        for first in range(0, len(windows), _CHUNK_FRAMES):
            chunk = frames[first : first + _CHUNK_FRAMES]
            spectrum = np.fft.rfft(windows[first : first + _CHUNK_FRAMES] * self._window)
            magnitude = np.abs(spectrum).astype(np.float32)
            for band in self._bands:
                np.matmul(magnitude[:, band.bins], band.weights, out=chunk[:, band.mels])
            np.log(np.maximum(chunk, _FLOOR), out=chunk)
        self._pending = self._pending[len(windows) * self._hop :].copy()
        return frames

    def _no_frames(self) -> np.ndarray:
        return np.zeros((0, self._num_mels), np.float32)


def log_mel(samples: np.ndarray, config: ProcessorConfig) -> np.ndarray:
    """float32 [frames, mels] of a whole signal [n] at the processor's rate.

    RequestError: n is at most half of fft_size.
    """
    stream = LogMel(config)
    return np.concatenate([stream.push(samples), stream.finish()])


def mel_filterbank(config: ProcessorConfig) -> np.ndarray:
    """float32 [fft_size / 2 + 1, mels]: triangles with peak 1, evenly spaced on the HTK mel scale.

    Each falls to zero at its neighbours' peaks; none is scaled by its width.
    """
    low, high = _to_mel(config.mel_fmin), _to_mel(config.mel_fmax)
    points = 700 * (10 ** (np.linspace(low, high, config.num_mels + 2) / 2595) - 1)
    bins = np.arange(config.fft_size // 2 + 1) * (config.sampling_rate / config.fft_size)
    widths = np.diff(points)
    distances = points - bins[:, None]
    rising = -distances[:, :-2] / widths[:-1]
    falling = distances[:, 2:] / widths[1:]
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)


def _bands(filterbank: np.ndarray) -> list[_Band]:
    bands = []
    for first in range(0, filterbank.shape[1], _BAND_MELS):
        mels = slice(first, first + _BAND_MELS)
        reached = np.flatnonzero(filterbank[:, mels].any(axis=1))
        bins = slice(reached[0], reached[-1] + 1) if len(reached) else slice(0)
        bands.append(_Band(bins=bins, mels=mels, weights=filterbank[bins, mels].copy()))
    return bands


def _to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)
