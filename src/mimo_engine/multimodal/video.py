"""Videos of a request to features.

A frame is decoded, resized and written to its place in shared memory before the next one is: what
an hour of video takes is its features and a few frames. Which frames these are depends on how many
there are, and that is sure only when all are decoded; packets tell it beforehand, for every file
but damaged and unusual ones, which are decoded a second time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.features import VisionFeatures
from mimo_engine.multimodal.frame_sampling import VideoRules, sample_frames, video_rules
from mimo_engine.multimodal.image import ImageSource, load_image
from mimo_engine.multimodal.inputs import VideoOptions
from mimo_engine.multimodal.pixels import PatchWriter
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.multimodal.video_file import RgbConverter, decode_frames, scan_video

__all__ = ["video_features", "video_frames_features"]


def video_features(
    source: bytes | Path,
    config: ProcessorConfig,
    limits: MediaLimits,
    options: VideoOptions,
    *,
    dtype: str,
) -> VisionFeatures:
    """Features of a video file, in `dtype` (float32 or bfloat16). Raises RequestError.

    source: the content of the file, or its path.
    """
    rules = video_rules(config, options)
    scan = scan_video(source)
    num_frames = scan.num_frames
    for _ in range(2):
        sample = sample_frames(num_frames, scan.fps, rules)
        sink = _FrameSink(config, rules, dtype, num_frames=len(sample.indices))
        num_decoded = _feed(sink, source, sample.indices, config, limits)
        if num_decoded == num_frames:
            return sink.features(sample.timestamps)
        num_frames = num_decoded
    raise RequestError("the video decodes differently each time, it is damaged: save it again")


def video_frames_features(
    frames: np.ndarray | Sequence[ImageSource],
    config: ProcessorConfig,
    limits: MediaLimits,
    options: VideoOptions,
    *,
    dtype: str,
    fps: float,
) -> VisionFeatures:
    """Features of a video whose frames the caller has chosen, all of them. Raises RequestError.

    frames: uint8 [num_frames, height, width, 3], or pictures as `load_image` takes them, of one
    size. options: of their size. fps: frames for each second, the first one at 0. The last frame
    stands for those that a step lacks.
    """
    num_frames = len(frames)
    if not num_frames:
        raise RequestError("the video has no frames")
    times = tuple((np.arange(num_frames, dtype=np.float32) / np.float32(fps)).tolist())
    rules = video_rules(config, options)
    sink = _FrameSink(config, rules, dtype, num_frames=num_frames)
    size = None
    for index, frame in enumerate(frames):
        picture = load_image(frame, config, limits)
        size = size or picture.shape
        if picture.shape != size:
            raise RequestError(
                f"frame {index} of the video has {picture.shape[1]} x {picture.shape[0]} pixels, "
                f"the first one {size[1]} x {size[0]}: all frames must have one size"
            )
        sink.add(picture)
    missing = -num_frames % config.temporal_patch_size
    return sink.features(times + times[-1:] * missing)


class _FrameSink:
    """Takes the frames that are to be seen, one after the other, and writes them as patches."""

    def __init__(
        self, config: ProcessorConfig, rules: VideoRules, dtype: str, *, num_frames: int
    ) -> None:
        self._config = config
        self._rules = rules
        self._dtype = dtype
        self._num_frames = num_frames
        self.num_taken = 0
        self._shared = SharedArrays()
        self._writer: PatchWriter | None = None
        self._grid = (0, 0, 0)

    def add(self, picture: np.ndarray) -> None:
        """picture: uint8 [height, width, 3]. The first one decides the size of all."""
        if self._writer is None:
            self._writer = self._allocate(*picture.shape[:2])
        frames_per_step = self._config.temporal_patch_size
        step, position = divmod(self.num_taken, frames_per_step)
        self.num_taken += 1
        # The last frame fills its step.
        end = frames_per_step if self.num_taken == self._num_frames else position + 1
        num_patches = self._grid[1] * self._grid[2]
        rows = self._shared.arrays[0][step * num_patches : (step + 1) * num_patches]
        self._writer.write(picture, rows, slice(position, end))

    def features(self, timestamps: tuple[float, ...]) -> VisionFeatures:
        assert self.num_taken == self._num_frames
        assert len(timestamps) == self._grid[0] * self._config.temporal_patch_size
        return VisionFeatures(shared=self._shared, grid=self._grid, timestamps=timestamps)

    def _allocate(self, height: int, width: int) -> PatchWriter:
        target = self._rules.frame_size(height, width, self._num_frames)
        writer = PatchWriter(self._config, target, self._dtype)
        num_steps = -(-self._num_frames // self._config.temporal_patch_size)
        self._grid = (num_steps, *writer.grid_hw)
        self._shared.add((math.prod(self._grid), self._config.patch_dim), self._dtype)
        return writer


def _feed(
    sink: _FrameSink,
    source: bytes | Path,
    indices: Sequence[int],
    config: ProcessorConfig,
    limits: MediaLimits,
) -> int:
    """Decode the file to its end, hand over the frames `indices`; returns how many there were."""
    converter = RgbConverter(turns=config.exif_orientation == "apply")
    num_decoded = 0
    for frame in decode_frames(source, limits):
        if sink.num_taken < len(indices) and num_decoded == indices[sink.num_taken]:
            sink.add(converter.convert(frame))
        num_decoded += 1
    return num_decoded
