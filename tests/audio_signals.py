"""Sounds that a formula gives, the same to the bit everywhere: for recorded values."""

import math

import numpy as np


def lcg_noise(num_samples: int, seed: int = 1) -> np.ndarray:
    """White noise in -0.1 ... 0.1, float32 (audio.md 2.3)."""
    values = np.empty(num_samples)
    state = seed
    for i in range(num_samples):
        state = (1664525 * state + 1013904223) % 2**32
        values[i] = state
    return (0.2 * (values / 2**32 - 0.5)).astype(np.float32)


def sweep(num_samples: int, rate: int, seed: int = 7) -> np.ndarray:
    """A sine that rises from 50 Hz to 0.4 times the rate, over white noise: no band is empty."""
    seconds, octaves = num_samples / rate, math.log(0.4 * rate / 50)
    time = np.arange(num_samples) / rate
    phase = 2 * np.pi * 50 * seconds / octaves * np.expm1(time / seconds * octaves)
    return (0.3 * np.sin(phase)).astype(np.float32) + lcg_noise(num_samples, seed)


GOLDEN_RATES = (8_000, 11_025, 16_000, 22_050, 32_000, 44_100, 44_056, 48_000, 96_000)
LOGMEL_FRAMES = np.r_[0:4, 10:170:10, 170:174]
"""Of the 174 frames of `golden_signals(24_000)`."""


def golden_signals(rate: int) -> dict[str, np.ndarray]:
    """What values are recorded for: 1.73 seconds and a bit, so that no length comes out even."""
    num_samples = int(1.73 * rate) + 5
    return {"noise": lcg_noise(num_samples, rate), "sweep": sweep(num_samples, rate)}


def sampled_positions(length: int) -> np.ndarray:
    """Both ends of a signal, where padding shows, and some of what lies between."""
    return np.unique(np.r_[0:48, 48 : length - 48 : 83, length - 48 : length])
