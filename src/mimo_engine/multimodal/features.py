"""What decoding makes of one piece of media: features in shared memory, and what layout needs."""

from __future__ import annotations

from dataclasses import dataclass

from mimo_engine.errors import RequestError
from mimo_engine.multimodal.shared_arrays import SharedArrays

__all__ = ["AudioFeatures", "SoundTooShortError", "VisionFeatures"]


class SoundTooShortError(RequestError):
    """A clip without enough samples for a frame of features. As a video's own it is no sound."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionFeatures:
    """An image or the pictures of a video."""

    shared: SharedArrays
    """One array: normalised patches [t * h * w, patch_dim] in the order of vision.md 2.1."""
    grid: tuple[int, int, int]
    """(t, h, w) in patches."""
    timestamps: tuple[float, ...] = ()
    """Seconds of each sampled frame, padding included: temporal_patch_size of them a grid step.
    Empty for an image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioFeatures:
    """One clip of sound."""

    shared: SharedArrays
    """float32 log-mel [frames, mels], one array a segment of at most segment_frames frames."""
    num_samples: int
    """At the processor's sampling rate."""
    num_tokens: int
