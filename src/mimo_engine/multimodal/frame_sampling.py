"""Which frames of a video the model sees, at which times and in which size (vision.md 5.2, 5.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.inputs import VideoOptions
from mimo_engine.multimodal.pixels import Size, pixel_limits, smart_resize

__all__ = ["FrameSample", "VideoRules", "sample_frames", "video_rules"]


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoRules:
    """The options of one video, every one decided."""

    fps: float
    min_frames: int
    max_frames: int
    min_pixels: int
    max_pixels: int
    total_max_pixels: int
    """Of all steps; the frames of a step count once."""
    total_limit_pixels: int
    """What total_max_pixels may be at most: no option may lead to more."""
    frames_per_step: int
    factor: int

    def frame_size(self, height: int, width: int, num_frames: int) -> Size:
        """The size at which `num_frames` frames are seen. Raises RequestError."""
        share = self.total_max_pixels * self.frames_per_step // num_frames
        most = max(self.min_pixels, min(share, self.max_pixels))
        if num_frames * most > self.total_limit_pixels * self.frames_per_step:
            raise RequestError(
                f"{num_frames} frames of at least {self.min_pixels} pixels are more than the model "
                "takes in one video: lower fps, max_frames or min_pixels"
            )
        return smart_resize(
            height, width, factor=self.factor, min_pixels=self.min_pixels, max_pixels=most
        )


def video_rules(config: ProcessorConfig, options: VideoOptions) -> VideoRules:
    """`options` over what the checkpoint says. Raises RequestError."""
    least, most = pixel_limits(
        config.video_min_pixels, config.video_max_pixels, options.min_pixels, options.max_pixels
    )
    total_limit = config.video_total_max_pixels * config.temporal_compression_ratio
    total = options.total_max_pixels or config.video_total_max_pixels
    if total > config.video_total_max_pixels:
        raise RequestError(
            f"total_max_pixels is {total}: it must be 1 ... {config.video_total_max_pixels}"
        )
    return VideoRules(
        fps=options.fps or config.fps,
        min_frames=options.min_frames or config.min_frames,
        max_frames=options.max_frames or config.max_frames,
        min_pixels=least,
        max_pixels=most,
        total_max_pixels=total * config.temporal_compression_ratio,
        total_limit_pixels=total_limit,
        frames_per_step=config.temporal_patch_size,
        factor=config.factor,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class FrameSample:
    """Frames of a video by their number, in the order in which they are shown, from 0."""

    indices: tuple[int, ...]
    timestamps: tuple[float, ...]
    """Seconds, float32."""


def sample_frames(num_frames: int, source_fps: float, rules: VideoRules) -> FrameSample:
    """The frames to see of a video of `num_frames` at `source_fps` on average.

    Spread evenly, the first and the last among them; an even number of them (a multiple of
    rules.frames_per_step). Raises RequestError for a video that is shorter than a step.
    """
    step = rules.frames_per_step
    low = -(-rules.min_frames // step) * step
    high = rules.max_frames // step * step
    wanted = num_frames / source_fps * rules.fps
    count = int(min(max(wanted, low), high, num_frames)) // step * step
    if not count:
        raise RequestError(
            f"the video has {num_frames} {'frame' if num_frames == 1 else 'frames'}, and the model "
            f"sees {step} at a time: send a single picture as an image"
        )
    indices = np.linspace(0, num_frames - 1, count).astype(np.int64)
    timestamps = indices.astype(np.float32) / np.float32(source_fps)
    return FrameSample(indices=tuple(indices.tolist()), timestamps=tuple(timestamps.tolist()))
