"""Pictures with captions, for `check --towers`: JSON Lines, read and checked before any weight is.

An object a line: {"image": path, "caption": text}. What must hold when this returns: every picture
can be shown to the model, and no picture is there twice, since each counts as one measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import ProcessorConfig
from mimo_engine.errors import ConfigError, RequestError
from mimo_engine.eval.rows import Row, json_rows
from mimo_engine.multimodal.image import image_features

__all__ = ["Caption", "read_captions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Caption:
    """One row of the file."""

    where: str
    """The row, for messages."""
    image: Path
    """With no symbolic link left in it."""
    text: str
    """Without space around it."""


def read_captions(path: Path, config: ProcessorConfig) -> list[Caption]:
    """One or more captions. Raises ConfigError, which names the row.

    config: how pictures are read; its statistics do not matter.
    """
    captions = [_caption(row) for row in json_rows(path)]
    if not captions:
        raise ConfigError(
            f'{path} is empty: give a line {{"image": path, "caption": text}} for each picture'
        )
    _check_distinct(captions)
    for caption in captions:
        _check_image(caption, config)
    return captions


def _caption(row: Row) -> Caption:
    if unknown := sorted(row.values.keys() - {"image", "caption"}):
        raise row.error(f"{', '.join(unknown)}: only image and caption are known")
    image = row.file("image", row.text("image")).resolve()
    return Caption(where=row.where, image=image, text=row.text("caption").strip())


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
    try:
        image_features(caption.image, config, MediaLimits(), dtype="float32")
    except RequestError as error:
        raise ConfigError(f"{caption.where}: {caption.image}: {error}") from error
