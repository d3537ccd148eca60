"""Pictures with captions, for `check --towers`: JSON Lines, read and checked before any weight is.

An object a line: {"image": path, "caption": text}. What must hold when this returns: every picture
can be shown to the model, and no picture is there twice, since each counts as one measurement.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import ConfigError, RequestError
from mimo_engine.multimodal.image import image_features

__all__ = ["Caption", "read_captions"]

_KEYS = ("image", "caption")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One line of the file."""

    where: str
    """The line, for messages."""
    image: Path
    """With no symbolic link left in it."""
    text: str
    """Without space around it."""


def read_captions(path: Path, config: ProcessorConfig) -> list[Caption]:
    """One or more captions. Raises ConfigError, which names the line.

    config: how pictures are read; its statistics do not matter.
    """
    try:
        with path.open(encoding="utf-8") as file:
            captions = [
                _read_line(line, path.parent, f"{path}, line {number}")
                for number, line in enumerate(file, 1)
            ]
    except OSError as error:
        raise ConfigError(f"--captions {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"--captions {path} is not UTF-8: {error}") from error
    if not captions:
        raise ConfigError(
            f'{path} is empty: give a line {{"image": path, "caption": text}} for each picture'
        )
    _check_distinct(captions)
    for caption in captions:
        _check_image(caption, config)
    return captions


def _read_line(line: str, directory: Path, where: str) -> Caption:
    try:
        raw = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where} is not JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{where} must be a JSON object, not {type(raw).__name__}")
    if unknown := sorted(raw.keys() - set(_KEYS)):
        raise ConfigError(f"{where} has {', '.join(unknown)}: only image and caption are known")
    for key in _KEYS:
        if not isinstance(raw.get(key), str) or not raw[key].strip():
            raise ConfigError(f"{where}: {key} must be a string that is not empty")
    try:
        image = (directory / raw["image"]).resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{where}: {raw['image']!r} is no path: {error}") from error
    return Caption(where=where, image=image, text=raw["caption"].strip())


def _check_distinct(captions: Sequence[Caption]) -> None:
    seen: dict[Path, Caption] = {}
    for caption in captions:
        other = seen.setdefault(caption.image, caption)
        if other is not caption:
            raise ConfigError(
                f"{caption.where} has the picture of {other.where} again: each picture counts as "
                "one measurement, so keep one line of it"
            )


def _check_image(caption: Caption, config: ProcessorConfig) -> None:
    if not caption.image.is_file():
        raise ConfigError(f"{caption.where}: {caption.image} is not a file")
    try:
        image_features(caption.image, config, MediaLimits(), dtype="float32")
    except RequestError as error:
        raise ConfigError(f"{caption.where}: {caption.image}: {error}") from error
