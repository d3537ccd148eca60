"""From pixels to patches: target size, resizing, normalisation, order of rows (vision.md 4).

A picture is uint8 [height, width, 3], RGB. It passes through in strips, one row of merged patches
at a time: what is alive beside the picture and the result stays in the processor's caches, however
large the picture, and an hour of video takes no more memory than one frame of it.

Bilinear resizing has half-pixel centres and no antialiasing. Output pixel i of n lies at
x = (i + 0.5) * source / n - 0.5, no less than 0, and is a[k] + (x - k) * (a[k + 1] - a[k]) with
k = floor(x), the last pixel standing for those beyond it; x and the weights are float32, as
torch.nn.functional.interpolate computes them. Values keep the range 0 ... 255, unrounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image

from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import RequestError

__all__ = [
    "PatchWriter",
    "Resizer",
    "Size",
    "hub_resize",
    "image_size",
    "pixel_limits",
    "smart_resize",
    "to_bfloat16",
]

_MAX_ASPECT = 200
_MAX_STRIP = 512
"""Longest side, in factors, of a picture whose short side is stretched to one factor: upstream has
no limit here, and comes to zero pixels with pictures that are thinner still."""


class Size(NamedTuple):
    """Of a picture, in pixels."""

    height: int
    width: int


def pixel_limits(
    default_min: int, default_max: int, min_pixels: int | None, max_pixels: int | None
) -> tuple[int, int]:
    """(least, most) pixels of a picture: the model's, or what a request asks for within those.

    A request may go below the model's least, not above its most. Raises RequestError.
    """
    for name, value in (("min_pixels", min_pixels), ("max_pixels", max_pixels)):
        if value is not None and not 1 <= value <= default_max:
            raise RequestError(f"{name} is {value}: it must be 1 ... {default_max}")
    most = default_max if max_pixels is None else max_pixels
    least = min(default_min, most) if min_pixels is None else min_pixels
    if least > most:
        raise RequestError(f"min_pixels is {least}, above max_pixels, which is {most}: lower it")
    return least, most


def smart_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """The size at which the model sees a picture: multiples of `factor`, within the limits.

    A picture with a side below `factor` is enlarged first. Halves round to even. Where the limits
    are too near each other for a multiple between them, one of them is missed. Raises RequestError
    for a picture too thin to keep its shape.
    """
    shorter, longer = min(height, width), max(height, width)
    assert shorter > 0
    if shorter < factor:
        if longer > _MAX_STRIP * shorter:
            raise _too_thin(height, width, _MAX_STRIP)
        stretch = factor / shorter
        height, width = round(height * stretch), round(width * stretch)
    elif longer > _MAX_ASPECT * shorter:
        raise _too_thin(height, width, _MAX_ASPECT)
    size = _within(height, width, factor, min_pixels, max_pixels)
    if not all(size):
        raise RequestError(
            f"a picture of {width} x {height} pixels is too thin to be shrunk to {max_pixels} "
            "pixels: crop it, or allow more pixels"
        )
    return size


def hub_resize(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """`smart_resize` by the rule of the processor that preprocessor_config.json names.

    Small pictures are not stretched first, every aspect is checked, and no side is shrunk below
    `factor`.
    """
    if max(height, width) > _MAX_ASPECT * min(height, width):
        raise _too_thin(height, width, _MAX_ASPECT)
    size = _within(height, width, factor, min_pixels, max_pixels)
    return Size(max(size.height, factor), max(size.width, factor))


def image_size(
    height: int,
    width: int,
    config: ProcessorConfig,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> Size:
    """The size at which the model sees an image, by the rule of its configuration."""
    least, most = pixel_limits(
        config.image_min_pixels, config.image_max_pixels, min_pixels, max_pixels
    )
    resize = hub_resize if config.uses_hub_resize_rule else smart_resize
    return resize(height, width, factor=config.factor, min_pixels=least, max_pixels=most)


def _within(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """Both sides rounded to multiples of `factor`, scaled where the product breaks a limit."""
    size = Size(round(height / factor) * factor, round(width / factor) * factor)
    if size.height * size.width > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        return Size(
            math.floor(height / shrink / factor) * factor,
            math.floor(width / shrink / factor) * factor,
        )
    if size.height * size.width < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        return Size(
            math.ceil(height * grow / factor) * factor, math.ceil(width * grow / factor) * factor
        )
    return size


def _too_thin(height: int, width: int, limit: int) -> RequestError:
    return RequestError(
        f"a picture of {width} x {height} pixels is too thin: its longer side may be at most "
        f"{limit} times the shorter one; crop it"
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taps:
    """For each output position of one axis: the two input positions and the second one's weight."""

    low: np.ndarray
    high: np.ndarray
    weight: np.ndarray


def _taps(source: int, target: int) -> _Taps:
    half = np.float32(0.5)
    scale = np.float32(source) / np.float32(target)
    position = np.maximum(scale * (np.arange(target, dtype=np.float32) + half) - half, 0)
    low = np.minimum(position.astype(np.intp), source - 1)
    weight = np.minimum(position - low, 1).astype(np.float32)
    return _Taps(low=low, high=np.minimum(low + 1, source - 1), weight=weight)


class Resizer:
    """Bilinear resizing of pictures of one size, any rows of the result at a time."""

    def __init__(self, source: Size, target: Size) -> None:
        self.source = source
        self._target = target
        self._rows = _taps(source.height, target.height)
        columns = _taps(source.width, target.width)
        # Pixels are stored as RGBRGB...: these indices read a row of them as planes RR...GG...BB.
        channel = np.arange(3)[:, None]
        self._left = (columns.low * 3 + channel).reshape(-1)
        self._right = (columns.high * 3 + channel).reshape(-1)
        self._right_weight = np.tile(columns.weight, 3)

    def rows(self, picture: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Rows start ... stop - 1 of the resized `picture`: float32 [stop - start, 3, width]."""
        assert picture.shape == (*self.source, 3)
        if self.source.height == self._target.height:
            return self._across(picture[start:stop])
        top = self._across(picture[self._rows.low[start:stop]])
        bottom = self._across(picture[self._rows.high[start:stop]])
        bottom -= top
        bottom *= self._rows.weight[start:stop, None, None]
        top += bottom
        return top

    def _across(self, rows: np.ndarray) -> np.ndarray:
        """Whole rows of pixels, resized along the row: float32 [rows, 3, width]."""
        if self.source.width == self._target.width:
            return np.ascontiguousarray(rows.transpose(0, 2, 1), np.float32)
        pixels = rows.reshape(len(rows), -1)
        left = pixels.take(self._left, axis=1, mode="clip").astype(np.float32)
        right = pixels.take(self._right, axis=1, mode="clip").astype(np.float32)
        right -= left
        right *= self._right_weight
        left += right
        return left.reshape(len(rows), 3, -1)


class PatchWriter:
    """Writes pictures as patches of one size: resized, normalised, in the order of vision.md 2.1.

    Rows are merge-row -> merge-column -> dy -> dx, columns channel -> frame -> py -> px.
    """

    def __init__(self, config: ProcessorConfig, target: Size, dtype: str) -> None:
        self._config = config
        self._target = target
        self._rounds = dtype == "bfloat16"
        self._mean = 255 * np.array(config.image_mean, np.float32)[:, None]
        self._std = 255 * np.array(config.image_std, np.float32)[:, None]
        self._resizer = Resizer(target, target)

    @property
    def grid_hw(self) -> tuple[int, int]:
        patch_size = self._config.patch_size
        return self._target.height // patch_size, self._target.width // patch_size

    def write(self, picture: np.ndarray, step: np.ndarray, frames: slice) -> None:
        """Write `picture` as the temporal positions `frames` of one grid step.

        step: [h * w, patch_dim], as dtype says (bfloat16: its bits in uint16).
        """
        config, target = self._config, self._target
        if config.resize_filter == "bicubic_antialias":
            picture = _bicubic(picture, target)
        source = Size(*picture.shape[:2])
        if self._resizer.source != source:
            self._resizer = Resizer(source, target)
        merge, patch = config.merge_size, config.patch_size
        height, width = target.height // config.factor, target.width // config.factor
        out = step.reshape(
            height, width, merge, merge, 3, config.temporal_patch_size, patch, patch
        )  # fmt: skip
        assert np.shares_memory(out, step)
        for row in range(height):
            strip = self._resizer.rows(picture, row * config.factor, (row + 1) * config.factor)
            strip -= self._mean
            strip /= self._std
            values = to_bfloat16(strip) if self._rounds else strip
            # [dy, py, channel, merge-column, dx, px] -> [merge-column, dy, dx, channel, py, px]
            patches = values.reshape(merge, patch, 3, width, merge, patch)
            out[row, :, :, :, :, frames] = patches.transpose(3, 0, 4, 2, 1, 5)[:, :, :, :, None]


def _bicubic(picture: np.ndarray, target: Size) -> np.ndarray:
    """Pillow's bicubic filter on 8 bits, which widens when it shrinks (antialiasing)."""
    if picture.shape[:2] == target:
        return picture
    image = Image.fromarray(picture).resize((target.width, target.height), Image.Resampling.BICUBIC)
    return np.asarray(image)


def to_bfloat16(values: np.ndarray) -> np.ndarray:
    """float32 rounded to the nearest bfloat16, halves to even: its bits, as uint16. NaN: 0x7FC0."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    odd = bits >> 16
    odd &= 1
    odd += bits
    odd += 0x7FFF
    odd >>= 16
    rounded = odd.astype(np.uint16)
    rounded[np.isnan(values)] = 0x7FC0
    return rounded
