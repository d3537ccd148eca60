"""Beeps and glides, and the silence with noise in which they stand. float32 at 24 kHz.

What the splits differ by is timbre: the strength of a tone's octave, whose middle quarter belongs
to the test split. Pitches are drawn alike in both.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable

import numpy as np

from mimo_engine.demo.task import Split

__all__ = ["SAMPLE_RATE", "add_sounds", "glide", "octave_strength", "random_pitch", "silence"]

SAMPLE_RATE = 24_000

_LOWEST_HZ, _OCTAVES = 300.0, 8 / 3
_EDGE_S = 0.01
"""A tone swells and fades, so that it does not click."""
_STRONGEST_OCTAVE = 0.3
"""Of the fundamental's amplitude."""
_UPPER_PARTIALS = (3, 4)


def random_pitch(rng: random.Random) -> float:
    """Hz, 300 to 1,905, evenly in semitones."""
    return _LOWEST_HZ * 2 ** rng.uniform(0, _OCTAVES)


def octave_strength(rng: random.Random, split: Split) -> float:
    """Of the partial at twice the pitch, 0 to 0.3 of the fundamental, of this split alone."""
    quarters = (1.5, 2.5)
    if split == "train":
        quarters = rng.choice(((0, 1.5), (2.5, 4)))
    return rng.uniform(*quarters) / 4 * _STRONGEST_OCTAVE


def glide(
    rng: random.Random, split: Split, start_hz: float, end_hz: float, length_s: float
) -> np.ndarray:
    """A tone of the split's timbre that goes evenly, in semitones, from one pitch to another."""
    num_samples = round(length_s * SAMPLE_RATE)
    steps = np.arange(num_samples, dtype=np.float32) / num_samples
    octaves = math.log2(end_hz / start_hz)
    cycles = steps if octaves == 0 else np.expm1(steps * (octaves * math.log(2)))
    # The integral of the pitch: start_hz * 2^(octaves * t / length).
    per_step = start_hz * length_s / (1 if octaves == 0 else octaves * math.log(2))
    phase = np.asarray(cycles * (2 * math.pi * per_step), np.float32)
    tone = np.sin(phase) + octave_strength(rng, split) * np.sin(2 * phase)
    for partial in _UPPER_PARTIALS:
        tone += rng.uniform(0, 0.5 / partial) * np.sin(partial * phase)
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
