"""Media of an example to features and token ids, as the engine's processor makes them of arrays.

The processor itself serves files and URLs, on threads, into shared memory, and needs a video
decoder; training has arrays and needs neither. The mathematics is the engine's: `PatchWriter`,
`LogMel` and the layouts. What must hold, and a test does: token ids, spans and every bit of the
features are the processor's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.multimodal.frame_sampling import video_rules
from mimo_engine.multimodal.inputs import VideoOptions
from mimo_engine.multimodal.interleave import Layout, audio_layout, image_layout, video_layout
from mimo_engine.multimodal.mel import LogMel
from mimo_engine.multimodal.pixels import PatchWriter, Size, image_size
from mimo_engine.multimodal.sources import MediaKind

__all__ = ["MediaFeatures", "Vision", "media_features"]

_BLOCK_SAMPLES = 1 << 16
"""What the processor reads at a time: the last bit of a sum may depend on it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Vision:
    """An image, or the pictures of a video."""

    patches: np.ndarray
    """[t * h * w, patch_dim], float32 or the bits of bfloat16 in uint16."""
    grid: tuple[int, int, int]
    times: tuple[float, ...] = ()
    """Seconds of each frame, padding included."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFeatures:
    """What the towers read of one part, and where its rows stand."""

    layout: Layout
    vision: Vision | None = None
    mel: np.ndarray | None = None
    """float32 [frames, mels] of the whole clip."""


def media_features(
    kind: MediaKind,
    part: Mapping[str, Any],
    config: ProcessorConfig,
    tokenizer: Tokenizer,
    *,
    dtype: str,
) -> MediaFeatures:
    """Features of a part that holds arrays; dtype, of patches: float32 or bfloat16."""
    if kind == "image":
        vision = _image(part["image"], config, dtype)
        return MediaFeatures(
            layout=image_layout(config, _step_tokens(vision, config)), vision=vision
        )
    if kind == "audio":
        mel = _mel(part["audio"], config)
        return MediaFeatures(layout=audio_layout(config, _num_tokens(mel, config)), mel=mel)
    frames, fps = part["video"]
    vision = _video(frames, fps, config, dtype)
    mel = _mel(part["audio"], config) if "audio" in part else None
    layout = video_layout(
        config,
        tokenizer.encode,
        vision.times,
        _step_tokens(vision, config),
        None if mel is None else _num_tokens(mel, config),
    )
    return MediaFeatures(layout=layout, vision=vision, mel=mel)


def _image(picture: np.ndarray, config: ProcessorConfig, dtype: str) -> Vision:
    height, width = picture.shape[:2]
    return _patches([picture], image_size(height, width, config), config, dtype)


def _video(
    frames: Sequence[np.ndarray] | np.ndarray, fps: float, config: ProcessorConfig, dtype: str
) -> Vision:
    height, width = frames[0].shape[:2]
    target = video_rules(config, VideoOptions()).frame_size(height, width, len(frames))
    vision = _patches(frames, target, config, dtype)
    times = tuple((np.arange(len(frames), dtype=np.float32) / np.float32(fps)).tolist())
    missing = -len(frames) % config.temporal_patch_size
    return Vision(patches=vision.patches, grid=vision.grid, times=times + times[-1:] * missing)


def _patches(
    frames: Sequence[np.ndarray] | np.ndarray, target: Size, config: ProcessorConfig, dtype: str
) -> Vision:
    """Frames in steps; the last one stands for those that its step lacks."""
    writer = PatchWriter(config, target, dtype)
    per_step = config.temporal_patch_size
    num_steps = -(-len(frames) // per_step)
    height, width = writer.grid_hw
    kept_as = np.uint16 if dtype == "bfloat16" else np.float32
    patches = np.zeros((num_steps, height * width, config.patch_dim), kept_as)
    for index, frame in enumerate(frames):
        step, position = divmod(index, per_step)
        end = per_step if index == len(frames) - 1 else position + 1
        writer.write(frame, patches[step], slice(position, end))
    return Vision(patches=patches.reshape(-1, config.patch_dim), grid=(num_steps, height, width))


def _step_tokens(vision: Vision, config: ProcessorConfig) -> int:
    _, height, width = vision.grid
    return height * width // config.merge_size**2


def _mel(sound: tuple[np.ndarray, float], config: ProcessorConfig) -> np.ndarray:
    samples, rate = sound
    assert rate == config.sampling_rate, "sounds of tasks come at the model's own rate"
    stream = LogMel(config)
    blocks = range(0, len(samples), _BLOCK_SAMPLES)
    frames = [stream.push(samples[start : start + _BLOCK_SAMPLES]) for start in blocks]
    return np.concatenate([*frames, stream.finish()])


def _num_tokens(mel: np.ndarray, config: ProcessorConfig) -> int:
    return -(-len(mel) // config.frames_per_token)
