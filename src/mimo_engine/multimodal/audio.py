"""Sound to features: decode, resample, log-mel, segments (audio.md 2).

All stages work on blocks, so an hour of sound takes no more memory than a minute but for its
features, and decoding stops when the limit is passed. These are plain functions to be called on a
thread: numpy and FFmpeg let go of the interpreter while they work.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.cutting import LEAST_S, Cutter, is_silent
from mimo_engine.multimodal.features import AudioFeatures, SoundTooShortError
from mimo_engine.multimodal.mel import LogMel
from mimo_engine.multimodal.resample import Resampler
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.multimodal.sound import SoundBlock, array_blocks, file_blocks

__all__ = ["SoundChunk", "audio_features", "sound_chunks"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundChunk:
    """A stretch of a long sound."""

    samples: np.ndarray
    """float32 [n]: one channel."""
    rate: int
    start: int
    """Samples before it."""
    is_silent: bool
    """As `cutting.is_silent` says."""

    @property
    def start_s(self) -> float:
        return self.start / self.rate

    @property
    def end_s(self) -> float:
        return (self.start + len(self.samples)) / self.rate


def audio_features(
    source: bytes | Path | tuple[np.ndarray, float],
    config: ProcessorConfig,
    limits: MediaLimits,
) -> AudioFeatures:
    """Features of a sound file, of the first sound track of a video file, or of (samples, rate).

    samples: see `array_blocks`. Raises RequestError: not decodable, without sound, too short, too
    long, at an odd rate, or with samples that are no levels.
    """
    blocks = array_blocks(*source) if isinstance(source, tuple) else file_blocks(source)
    shared = SharedArrays()
    try:
        with closing(blocks):
            num_samples = _write_mels(_limited(blocks, limits), config, shared)
    except BaseException:
        shared.close()
        raise
    num_tokens = num_samples // (config.hop * config.frames_per_token) + 1
    assert num_tokens == sum(
        math.ceil(len(segment) / config.frames_per_token) for segment in shared.arrays
    )
    return AudioFeatures(shared=shared, num_samples=num_samples, num_tokens=num_tokens)


def sound_chunks(
    source: bytes | Path,
    config: ProcessorConfig,
    limits: MediaLimits,
    *,
    longest_s: float,
) -> Generator[SoundChunk]:
    """A sound file at the processor's rate, cut as `Cutter` does, each chunk as it is asked for.

    Raises RequestError as `audio_features`, also midway. Close the iterator when it is left early.
    """
    rate, start = config.sampling_rate, 0
    with closing(file_blocks(source)) as blocks:
        resampled = _resampled(_limited(blocks, limits), rate)
        for samples in _cut(resampled, Cutter(rate, longest_s)):
            if start == 0 and len(samples) < LEAST_S * rate:
                break
            yield SoundChunk(
                samples=samples, rate=rate, start=start, is_silent=is_silent(samples, rate)
            )
            start += len(samples)
    if start == 0:
        raise SoundTooShortError(
            f"the sound is shorter than {1000 * LEAST_S:.0f} ms: send a longer one"
        )


def _cut(sound: Iterator[np.ndarray], cutter: Cutter) -> Iterator[np.ndarray]:
    for samples in sound:
        yield from cutter.push(samples)
    yield from cutter.finish()


def _resampled(blocks: Iterator[SoundBlock], rate: int) -> Iterator[np.ndarray]:
    """float32 [n] each, n >= 0."""
    resampler: Resampler | None = None
    for block in blocks:
        resampler = resampler or Resampler(block.rate, rate)
        yield resampler.push(block.samples)
    if resampler is not None:
        yield resampler.finish()


def _limited(blocks: Iterator[SoundBlock], limits: MediaLimits) -> Iterator[SoundBlock]:
    """The same blocks, until they are too many."""
    num_samples = 0
    for block in blocks:
        num_samples += len(block.samples)
        if num_samples > limits.max_audio_s * block.rate:
            raise RequestError(
                f"the sound is longer than {limits.max_audio_s:g} s (--max-audio-s): send a "
                "shorter part"
            )
        yield block


def _write_mels(blocks: Iterator[SoundBlock], config: ProcessorConfig, shared: SharedArrays) -> int:
    """Fill `shared`, and return the number of samples at the processor's rate."""
    mel = LogMel(config)
    segment = np.empty((config.segment_frames, config.num_mels), np.float32)
    for frames in _segments(_mels(blocks, config.sampling_rate, mel), segment):
        shared.add(frames.shape, "float32")[:] = frames
    return mel.num_samples


def _mels(blocks: Iterator[SoundBlock], rate: int, mel: LogMel) -> Iterator[np.ndarray]:
    """float32 [k, mels] each, k >= 0."""
    for samples in _resampled(blocks, rate):
        yield mel.push(samples)
    yield mel.finish()


def _segments(mels: Iterator[np.ndarray], segment: np.ndarray) -> Iterator[np.ndarray]:
    """The same frames, as many as `segment` holds at a time, and the rest: in `segment`, until the
    next are asked for. An array of shared memory has its length from the start."""
    num_held = 0
    for frames in mels:
        while len(frames):
            part = frames[: len(segment) - num_held]
            segment[num_held : num_held + len(part)] = part
            num_held += len(part)
            frames = frames[len(part) :]
            if num_held == len(segment):
                yield segment
                num_held = 0
    if num_held:
        yield segment[:num_held]
