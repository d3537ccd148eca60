"""Capitals and digits as masks: two typefaces, and what is made of them.

    plain           Aileron Regular, the scalable font inside Pillow (CC0 by its author's word)
    slanted         the same, leaning to the right
    narrow          the same, at four fifths of its width
    bold            the same, one pixel thicker on every side
    bold slanted    both at once: test split alone
    pixel           the 5 x 7 dots drawn below, each a square of whole pixels

No font of the system is used, so that text looks the same everywhere.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mimo_engine.demo.task import Split

__all__ = ["CHARACTERS", "STYLES", "text_mask"]

STYLES: dict[Split, tuple[str, ...]] = {
    "train": ("plain", "slanted", "narrow", "bold", "pixel"),
    "test": ("bold slanted",),
}

_CAP_HEIGHT = 0.7
"""Of Aileron's capitals and digits, in ems."""
_SLANT = 0.2
_NARROW = 0.8

_ROWS = """
    01110 00100 01110 11111 00010 11111 00110 11111 01110 01110
    10001 01100 10001 00010 00110 10000 01000 00001 10001 10001
    10001 00100 00001 00100 01010 11110 10000 00010 10001 10001
    10001 00100 00110 01110 10010 00001 11110 00100 01110 01111
    10001 00100 01000 00001 11111 00001 10001 00100 10001 00001
    10001 00100 10000 10001 00010 10001 10001 01000 10001 00010
    01110 01110 11111 01110 00010 01110 01110 01000 01110 01100

    00100 11110 01110 11110 11111 11111 01110 10001 01110 00111 10001 10000 10001
    01010 10001 10001 10001 10000 10000 10001 10001 00100 00010 10010 10000 11011
    10001 10001 10000 10001 10000 10000 10000 10001 00100 00010 10100 10000 10101
    10001 11110 10000 10001 11110 11110 10011 11111 00100 00010 11000 10000 10101
    11111 10001 10000 10001 10000 10000 10001 10001 00100 00010 10100 10000 10001
    10001 10001 10001 10001 10000 10000 10001 10001 00100 10010 10010 10000 10001
    10001 11110 01110 11110 11111 10000 01110 10001 01110 01100 10001 11111 10001

    10001 01110 11110 01110 11110 01111 11111 10001 10001 10001 10001 10001 11111
    11001 10001 10001 10001 10001 10000 00100 10001 10001 10001 10001 10001 00001
    10101 10001 10001 10001 10001 10000 00100 10001 10001 10001 01010 01010 00010
    10011 10001 11110 10001 11110 01110 00100 10001 10001 10101 00100 00100 00100
    10001 10001 10000 10101 10100 00001 00100 10001 01010 10101 01010 00100 01000
    10001 10001 10000 10010 10010 00001 00100 10001 01010 11011 10001 00100 10000
    10001 01110 10000 01101 10001 11110 00100 01110 00100 10001 10001 00100 11111
"""
CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@lru_cache(maxsize=2048)
def text_mask(text: str, style: str, height: int, max_width: int) -> np.ndarray:
    """How much of each pixel is ink, float32 [about height, <= max_width], 0 ... 1; do not write.

    text: of CHARACTERS. height: of the characters; less where the text would be too wide.
    """
    while True:
        mask = _pixel_mask(text, height) if style == "pixel" else _font_mask(text, style, height)
        if mask.shape[1] <= max_width:
            return mask
        height -= 1


def _pixel_mask(text: str, height: int) -> np.ndarray:
    dots = _dots()
    gap = np.zeros((7, 1), np.float32)
    columns = [column for character in text for column in (dots[character], gap)][:-1]
    scale = max(1, round(height / 7))
    return np.kron(np.concatenate(columns, axis=1), np.ones((scale, scale), np.float32))


@lru_cache(maxsize=1)
def _dots() -> dict[str, np.ndarray]:
    """float32 [7, 5] of each character."""
    blocks = [block.split("\n") for block in _ROWS.strip("\n").split("\n\n")]
    glyphs = [rows for block in blocks for rows in zip(*map(str.split, block), strict=True)]
    return {
        character: np.array([[float(dot) for dot in row] for row in rows], np.float32)
        for character, rows in zip(CHARACTERS, glyphs, strict=True)
    }


def _font_mask(text: str, style: str, height: int) -> np.ndarray:
    font = _font(max(4, round(height / _CAP_HEIGHT)))
    stroke = 1 if "bold" in style else 0
    box = font.getbbox(text, stroke_width=stroke)
    # A leaning text reaches further to the right.
    width = int(box[2] - box[0]) + int(_SLANT * height) + 2
    image = Image.new("L", (width, int(box[3] - box[1])))
    ImageDraw.Draw(image).text((-box[0], -box[1]), text, fill=255, font=font, stroke_width=stroke)
    if "slanted" in style:
        matrix = (1, _SLANT, -_SLANT * image.height, 0, 1, 0)
        image = image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR
        )
    elif style == "narrow":
        image = image.resize((round(_NARROW * width), image.height), Image.Resampling.BILINEAR)
    ink = np.asarray(image, np.float32) / 255
    inked = np.flatnonzero(ink.any(axis=0))
    return ink[:, inked[0] : inked[-1] + 1]


@lru_cache(maxsize=128)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
