"""Beeps and glides, and the silence with noise in which they stand. float32 at 24 kHz.

What the splits differ by is pitch: of the semitones from 300 Hz up, every fourth belongs to the
test split, and a tone lies within a third of a semitone of its own.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np

from mimo_engine.demo.task import Split

__all__ = ["SAMPLE_RATE", "add_sounds", "glide", "semitone", "silence", "split_pitch"]

SAMPLE_RATE = 24_000

_LOWEST_HZ = 300.0
_NUM_SEMITONES = 32
_TEST_EVERY = 4
_DETUNE = 1 / 3
_EDGE_S = 0.01
"""A tone swells and fades, so that it does not click."""
_OVERTONES = 3


def semitone(rng: random.Random, split: Split) -> float:
    """Semitones above 300 Hz, 0 to 31 and a third, of those of this split alone."""
    group = rng.randrange(_NUM_SEMITONES // _TEST_EVERY)
    inside = 0 if split == "test" else rng.randrange(1, _TEST_EVERY)
    return group * _TEST_EVERY + inside + rng.uniform(-_DETUNE, _DETUNE)


def split_pitch(rng: random.Random, split: Split) -> float:
    """Hz, of the semitones of this split alone."""
    return _LOWEST_HZ * 2 ** (semitone(rng, split) / 12)


def glide(rng: random.Random, start_hz: float, end_hz: float, length_s: float) -> np.ndarray:
    """A tone of random timbre that goes evenly, in semitones, from one pitch to another."""
    num_samples = round(length_s * SAMPLE_RATE)
    steps = np.arange(num_samples, dtype=np.float32) / num_samples
    octaves = math.log2(end_hz / start_hz)
    cycles = steps if octaves == 0 else np.expm1(steps * (octaves * math.log(2)))
    # The integral of the pitch: start_hz * 2^(octaves * t / length).
    per_step = start_hz * length_s / (1 if octaves == 0 else octaves * math.log(2))
    phase = np.asarray(cycles * (2 * math.pi * per_step), np.float32)
    tone = np.sin(phase)
    for overtone in range(2, 2 + _OVERTONES):
        tone += rng.uniform(0, 0.5 / overtone) * np.sin(overtone * phase)
    edge = round(_EDGE_S * SAMPLE_RATE)
    swell = np.sin(np.linspace(0, math.pi / 2, edge, dtype=np.float32)) ** 2
    tone[:edge] *= swell
    tone[-edge:] *= swell[::-1]
    return tone


def silence(rng: random.Random, noise: np.random.Generator, length_s: float) -> np.ndarray:
    """Room noise, 36 to 56 dB below full scale."""
    level = 10 ** (-rng.uniform(36, 56) / 20)
    return level * noise.standard_normal(round(length_s * SAMPLE_RATE), np.float32)


def add_sounds(
    clip: np.ndarray, sounds: Iterable[tuple[float, np.ndarray]], gain: float
) -> np.ndarray:
    """The clip with sounds on it, each from its second on and whole, limited to full scale."""
    for start_s, sound in sounds:
        start = round(start_s * SAMPLE_RATE)
        clip[start : start + len(sound)] += gain * sound
    return np.clip(clip, -1, 1, out=clip)
