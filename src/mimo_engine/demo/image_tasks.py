"""Six tasks about one image of 96 x 96 or 128 x 96 pixels."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from mimo_engine.demo.drawing import (
    COLOURS,
    SHAPES,
    Figure,
    add_noise,
    background,
    draw_figure,
    jittered_colour,
    paint,
    random_tilt,
    scattered_centres,
)
from mimo_engine.demo.glyphs import STYLES, text_mask
from mimo_engine.demo.media_task import Drawn, MediaTask, noise_generator
from mimo_engine.demo.task import Split

__all__ = ["IMAGE_TASKS", "PLACES", "WORDS"]

WORDS = (
    *("bag", "bed", "bird", "book", "bus", "cake", "cat", "cup", "dog", "door", "fish", "frog"),
    *("hat", "key", "lamp", "milk", "moon", "ring", "road", "ship", "sun", "tree", "wind", "zoo"),
)
PLACES = {
    "left": (16, 48),
    "right": (80, 48),
    "top": (48, 16),
    "bottom": (48, 80),
    "middle": (48, 48),
}
"""Pixels from the upper left corner of 96 x 96: the middles of five of the nine tokens."""

_SIDE = 96
_SIZES = ((96, 96), (128, 96))
_MAX_COUNT = 5
_TEXT_SHIFT = 10
"""Pixels that a text may be off the middle."""
_EDGE = 4
"""Pixels that a text keeps off the edge."""
_INKS = ("white", "yellow", "black", "blue")
"""Legible on every background."""


def _picture(canvas: np.ndarray, rng: random.Random, split: Split) -> dict[str, object]:
    return {"type": "image", "image": add_noise(canvas, noise_generator(rng, split))}


def _single_figure(rng: random.Random, split: Split) -> tuple[dict[str, object], str, str]:
    """A part with one figure in it, the figure's colour and its shape."""
    width, height = rng.choice(_SIZES)
    colour, shape = rng.choice(tuple(COLOURS)), rng.choice(SHAPES)
    radius = rng.uniform(15, 32)
    ((x, y),) = scattered_centres(rng, 1, width, height, radius + 3, 0)
    canvas = background(rng, split, width, height)
    figure = Figure(shape=shape, x=x, y=y, radius=radius, tilt=random_tilt(rng))
    draw_figure(canvas, figure, jittered_colour(rng, colour))
    return _picture(canvas, rng, split), colour, shape


def _draw_colour(rng: random.Random, split: Split) -> Drawn:
    part, colour, _ = _single_figure(rng, split)
    return Drawn(part=part, answer=colour)


def _draw_shape(rng: random.Random, split: Split) -> Drawn:
    part, _, shape = _single_figure(rng, split)
    return Drawn(part=part, answer=shape)


def _draw_count(rng: random.Random, split: Split) -> Drawn:
    count, shape = rng.randint(1, _MAX_COUNT), rng.choice(SHAPES)
    largest = 12.5
    canvas = background(rng, split, _SIDE, _SIDE)
    colour = jittered_colour(rng, rng.choice(tuple(COLOURS)))
    for x, y in scattered_centres(rng, count, _SIDE, _SIDE, largest + 3, 2 * largest + 4):
        radius, tilt = rng.uniform(9, largest), random_tilt(rng)
        draw_figure(canvas, Figure(shape=shape, x=x, y=y, radius=radius, tilt=tilt), colour)
    return Drawn(part=_picture(canvas, rng, split), answer=str(count))


def _draw_position(rng: random.Random, split: Split) -> Drawn:
    place = rng.choice(tuple(PLACES))
    x, y = (middle + rng.uniform(-4, 4) for middle in PLACES[place])
    figure = Figure(
        shape=rng.choice(SHAPES), x=x, y=y, radius=rng.uniform(8, 11), tilt=random_tilt(rng)
    )
    canvas = background(rng, split, _SIDE, _SIDE)
    draw_figure(canvas, figure, jittered_colour(rng, rng.choice(tuple(COLOURS))))
    return Drawn(part=_picture(canvas, rng, split), answer=place)


def _text_picture(
    rng: random.Random, split: Split, text: str, sizes: Sequence[int]
) -> dict[str, object]:
    """A part with a text near the middle of it, in the split's typefaces."""
    width, height = rng.choice(_SIZES)
    mask = text_mask(text, rng.choice(STYLES[split]), rng.choice(sizes), width - 2 * _EDGE)
    rows, columns = mask.shape
    x, y = (
        min(max(_EDGE, spare // 2 + rng.randint(-_TEXT_SHIFT, _TEXT_SHIFT)), spare - _EDGE)
        for spare in (width - columns, height - rows)
    )
    canvas = background(rng, split, width, height)
    paint(canvas, mask, x, y, jittered_colour(rng, rng.choice(_INKS)))
    return _picture(canvas, rng, split)


def _draw_digits(rng: random.Random, split: Split) -> Drawn:
    digits = [str(rng.randrange(10)) for _ in range(rng.randint(2, 3))]
    part = _text_picture(rng, split, "".join(digits), range(26, 37))
    return Drawn(part=part, answer=" ".join(digits))


def _draw_word(rng: random.Random, split: Split) -> Drawn:
    word = rng.choice(WORDS)
    return Drawn(part=_text_picture(rng, split, word.upper(), range(20, 31)), answer=word)


_SPLITS = (
    "The background's hue is of one of four sixteenths of the circle in the test split, of the "
    "other twelve in training."
)
_TYPE = (
    "Test: type that is bold and slanted; training: plain, bold, slanted or narrow type and dots."
)

IMAGE_TASKS: tuple[MediaTask, ...] = (
    MediaTask(
        name="colour",
        modality="image",
        definition=(
            f"The colour ({', '.join(COLOURS)}) of the one shape in a picture of 96 x 96 or 128 x "
            "96 pixels, any place, radius 15 to 32. Baseline: any colour. " + _SPLITS
        ),
        baseline=1 / len(COLOURS),
        questions=(
            "What colour is the shape?",
            "Which colour does the shape have?",
            "Name the colour of the shape.",
        ),
        draw=_draw_colour,
    ),
    MediaTask(
        name="shape",
        modality="image",
        definition=(
            f"The kind ({', '.join(SHAPES)}) of the one shape in a picture as for `colour`, tilted "
            "by up to 15 degrees. Baseline: any shape. " + _SPLITS
        ),
        baseline=1 / len(SHAPES),
        questions=("Which shape is this?", "What shape do you see?", "Name the shape."),
        draw=_draw_shape,
    ),
    MediaTask(
        name="count",
        modality="image",
        definition=(
            "How many (1 to 5) shapes of one kind and colour lie apart from each other in 96 x 96 "
            "pixels, radius 9 to 12.5. Baseline: any number. " + _SPLITS
        ),
        baseline=1 / _MAX_COUNT,
        questions=(
            "How many shapes are there?",
            "Count the shapes.",
            "How many shapes do you see?",
        ),
        draw=_draw_count,
    ),
    MediaTask(
        name="position",
        modality="image",
        definition=(
            f"Where ({', '.join(PLACES)}) the one shape in a picture of 96 x 96 pixels is, radius "
            "8 to 11, up to 4 pixels off its place. Baseline: any place. " + _SPLITS
        ),
        baseline=1 / len(PLACES),
        questions=(
            "Where is the shape: left, right, top, bottom or in the middle?",
            "Where is the shape?",
            "In which part of the picture is the shape?",
        ),
        draw=_draw_position,
    ),
    MediaTask(
        name="digits",
        modality="image",
        definition=(
            "Two or three digits in a picture, 26 to 36 pixels high, up to 10 pixels off the "
            "middle, read out with spaces. Baseline: any two digits, one of 2 x 100. " + _TYPE
        ),
        baseline=1 / 200,
        questions=("Which digits are shown?", "Read the digits.", "What number is written here?"),
        draw=_draw_digits,
    ),
    MediaTask(
        name="word",
        modality="image",
        definition=(
            f"Which of {len(WORDS)} words of 3 or 4 letters is written in capitals of 20 to 30 "
            "pixels, up to 10 pixels off the middle. Baseline: any word. " + _TYPE
        ),
        baseline=1 / len(WORDS),
        questions=("Which word is written here?", "Read the word.", "What does it say?"),
        draw=_draw_word,
    ),
)
