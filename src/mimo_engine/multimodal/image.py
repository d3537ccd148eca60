"""Pictures of a request to pixels and features.

A file is BMP, GIF, JPEG, PNG, TIFF or WebP; of an animation or a file of many pages the first
picture counts. What decoding would cost is known, and refused, from the header. The result is
8-bit RGB whatever the file holds: 16-bit grey keeps its upper byte (as Pillow does with 16-bit
colours), transparent pixels go where `image_alpha` says, EXIF turns the picture unless
`exif_orientation` says otherwise, and colour profiles are not applied. Damaged EXIF data turns
nothing; damaged pixels are refused.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.features import VisionFeatures
from mimo_engine.multimodal.pixels import PatchWriter, image_size
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.multimodal.sources import opened

__all__ = ["ImageSource", "image_features", "load_image"]

ImageSource = bytes | Path | Image.Image | np.ndarray
"""The content of a file, its path, or pixels that the caller has: uint8 [height, width], grey, or
[height, width, 3 or 4], RGB or RGBA."""

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
_PILLOW = re.compile(r"PIL\b")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation."""


def image_features(
    source: ImageSource,
    config: ProcessorConfig,
    limits: MediaLimits,
    *,
    dtype: str,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> VisionFeatures:
    """Features of one picture, in `dtype` (float32 or bfloat16). Raises RequestError."""
    picture = load_image(source, config, limits)
    height, width = picture.shape[:2]
    target = image_size(height, width, config, min_pixels=min_pixels, max_pixels=max_pixels)
    writer = PatchWriter(config, target, dtype)
    grid = (1, *writer.grid_hw)
    shared = SharedArrays()
    rows = shared.add((grid[1] * grid[2], config.patch_dim), dtype)
    writer.write(picture, rows, slice(0, config.temporal_patch_size))
    return VisionFeatures(shared=shared, grid=grid)


def load_image(source: ImageSource, config: ProcessorConfig, limits: MediaLimits) -> np.ndarray:
    """uint8 [height, width, 3], RGB. Raises RequestError, before decoding what is too large."""
    if isinstance(source, np.ndarray):
        return _load_array(source, config, limits)
    _quiet_pillow()
    try:
        if isinstance(source, Image.Image):
            _check_size(source.size, limits)
            return _to_rgb(source, config)
        with opened(source, "image") as file, Image.open(file, formats=_FORMATS) as image:
            _check_size(image.size, limits)
            return _to_rgb(image, config)
    except RequestError:
        raise
    except UnidentifiedImageError:
        raise RequestError(
            "the image is not a BMP, GIF, JPEG, PNG, TIFF or WebP file, or its header is damaged: "
            "send it in one of these formats"
        ) from None
    except Image.DecompressionBombError as error:
        raise RequestError(f"the image is too large: {error}") from None
    # Pillow raises what the damage leads to, from struct.error to IndexError.
    except Exception as error:
        raise RequestError(
            f"the image cannot be decoded, it is damaged or incomplete ({error}): save it again"
        ) from error


def _load_array(array: np.ndarray, config: ProcessorConfig, limits: MediaLimits) -> np.ndarray:
    shape = array.shape
    if array.dtype != np.uint8 or not (len(shape) == 2 or (len(shape) == 3 and shape[2] in (3, 4))):
        raise RequestError(
            f"an image as an array is uint8 [height, width], [height, width, 3] or "
            f"[height, width, 4], not {array.dtype} {list(shape)}: convert it"
        )
    _check_size((shape[1], shape[0]), limits)
    if len(shape) == 3 and shape[2] == 3:
        return array
    return _to_rgb(Image.fromarray(array), config)


def _check_size(size: tuple[int, int], limits: MediaLimits) -> None:
    width, height = size
    if not width or not height:
        raise RequestError("the image has no pixels")
    if width * height > limits.max_image_megapixels * 1e6:
        raise RequestError(
            f"the image has {width} x {height} pixels, more than {limits.max_image_megapixels:g} "
            "megapixels: send a smaller one"
        )


def _to_rgb(image: Image.Image, config: ProcessorConfig) -> np.ndarray:
    """Decode what is not decoded yet, turn, and reduce to 8-bit RGB."""
    image.load()
    if config.exif_orientation == "apply" and (turn := _TURNS.get(_orientation(image))) is not None:
        # Metadata is in `info` of the copy too.
        image = image.transpose(turn)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_deep_grey(image, config)
    if image.mode == "F":
        raise RequestError("an image of floating-point pixels has no known range: save it as 8 bit")
    if image.has_transparency_data:
        # By way of RGBA also where alpha is dropped: palettes may hold it in a form that
        # conversion to RGB warns of.
        image = image.convert("RGBA")
        if config.image_alpha == "white":
            canvas = Image.new("RGB", image.size, "white")
            canvas.paste(image, mask=image.getchannel("A"))
            image = canvas
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def _from_deep_grey(image: Image.Image, config: ProcessorConfig) -> np.ndarray:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise RequestError("the image has pixels of more than 16 bits: save it as 8 bit")
    grey = (values >> 8).astype(np.uint8)
    transparent = image.info.get("transparency")
    if transparent is not None and config.image_alpha == "white":
        grey[values == transparent] = 255
    return np.repeat(grey[:, :, None], 3, axis=2)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    # Pillow parses EXIF as it is: damage shows as any error.
    except Exception:
        return 1


def _quiet_pillow() -> None:
    """Keep Pillow's warnings of odd metadata and large pictures to itself, in this process.

    Both are decided here. `warnings.catch_warnings` would put back other threads' filters.
    """
    if ("ignore", None, Warning, _PILLOW, 0) not in warnings.filters:
        warnings.filterwarnings("ignore", module=_PILLOW.pattern)
