"""Five tasks about short films at two frames a second, two of them with sound.

The model sees frames in pairs, a second each. A lamp that flashes is lit in one frame of a pair or
in both; a beep lies wholly inside a pair's second. So what the answers depend on, which pair or how
many, is never cut through by the grid.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import numpy as np

from mimo_engine.demo.drawing import (
    COLOURS,
    Figure,
    add_noise,
    background,
    draw_figure,
    jittered_colour,
)
from mimo_engine.demo.media_task import Drawn, MediaTask, noise_generator
from mimo_engine.demo.task import Split
from mimo_engine.demo.tones import SAMPLE_RATE, add_sounds, glide, random_pitch, silence

__all__ = ["FPS", "VIDEO_TASKS"]

FPS = 2.0

_SIDE = 64
_DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""x and y, y downwards."""
_LAMPS = tuple(name for name in COLOURS if name != "black")
_LIT = ((0,), (1,), (0, 1))
"""Frames of a pair."""
_FLASHES_PAIRS, _MAX_FLASHES = 8, 4
_AGREE_PAIRS, _MAX_AGREE = 6, 3
_SHORT_PAIRS = 4


def _blank(rng: random.Random, split: Split, num_frames: int) -> np.ndarray:
    """float32 [num_frames, 64, 64, 3]: an empty scene that does not change."""
    return np.repeat(background(rng, split, _SIDE, _SIDE)[None], num_frames, axis=0)


def _lamp(rng: random.Random) -> Figure:
    radius = rng.uniform(10, 18)
    x, y = (rng.uniform(radius + 2, _SIDE - 3 - radius) for _ in range(2))
    return Figure(shape="circle", x=x, y=y, radius=radius)


def _flash(
    rng: random.Random, film: np.ndarray, pair: int, lamp: Figure, shade: np.ndarray
) -> None:
    """Light the lamp in some frames of a pair, in place."""
    for frame in rng.choice(_LIT):
        draw_figure(film[2 * pair + frame], lamp, shade)


def _apart(rng: random.Random, count: int, num_pairs: int) -> list[int]:
    """`count` of the pairs, rising, no two of them neighbours."""
    picked = sorted(rng.sample(range(num_pairs - count + 1), count))
    return [pair + index for index, pair in enumerate(picked)]


def _flashing(rng: random.Random, split: Split, num_pairs: int, pairs: Iterable[int]) -> np.ndarray:
    """A film in which one lamp flashes in the given pairs."""
    film, lamp = _blank(rng, split, 2 * num_pairs), _lamp(rng)
    shade = jittered_colour(rng, rng.choice(_LAMPS))
    for pair in pairs:
        _flash(rng, film, pair, lamp, shade)
    return film


def _beeping(
    rng: random.Random,
    split: Split,
    noise: np.random.Generator,
    num_pairs: int,
    pairs: Sequence[int],
) -> np.ndarray:
    """Sound as long as a film of so many pairs, with a beep inside the second of the given ones.

    The model has 6.25 rows of sound a second, and a second's rows end up to 0.12 s before it does.
    """
    pitch, length_s = random_pitch(rng), rng.uniform(0.2, 0.35)
    beep = glide(rng, split, pitch, pitch, length_s)
    starts = [pair + rng.uniform(0.12, 0.82 - length_s) for pair in pairs]
    clip = silence(rng, noise, num_pairs * 2 / FPS)
    return add_sounds(clip, ((start, beep) for start in starts), rng.uniform(0.1, 0.4))


def _part(
    film: np.ndarray, noise: np.random.Generator, sound: np.ndarray | None = None
) -> dict[str, object]:
    part: dict[str, object] = {"type": "video", "video": (add_noise(film, noise), FPS)}
    if sound is not None:
        part["audio"] = (sound, SAMPLE_RATE)
    return part


def _draw_motion(rng: random.Random, split: Split) -> Drawn:
    direction = rng.choice(tuple(_DIRECTIONS))
    num_frames, radius = rng.choice((4, 6, 8)), rng.uniform(5, 8)
    nearest, furthest = radius + 2, _SIDE - 3 - radius
    travel, drift = rng.uniform(26, furthest - nearest), rng.uniform(-4, 4)
    along = np.linspace(-travel / 2, travel / 2, num_frames)
    aside = np.linspace(-drift / 2, drift / 2, num_frames)
    dx, dy = _DIRECTIONS[direction]
    reach_x, reach_y = (travel, abs(drift)) if dx else (abs(drift), travel)
    x = rng.uniform(nearest + reach_x / 2, furthest - reach_x / 2)
    y = rng.uniform(nearest + reach_y / 2, furthest - reach_y / 2)
    film = _blank(rng, split, num_frames)
    shade = jittered_colour(rng, rng.choice(tuple(COLOURS)))
    for frame, forth, off in zip(film, along, aside, strict=True):
        dot_x, dot_y = x + dx * forth + abs(dy) * off, y + dy * forth + abs(dx) * off
        draw_figure(frame, Figure(shape="circle", x=dot_x, y=dot_y, radius=radius), shade)
    return Drawn(part=_part(film, noise_generator(rng, split)), answer=direction)


def _draw_order(rng: random.Random, split: Split) -> Drawn:
    colours = rng.sample(_LAMPS, 2)
    film = _blank(rng, split, 2 * _SHORT_PAIRS)
    pairs = sorted(rng.sample(range(_SHORT_PAIRS), 2))
    for pair, colour in zip(pairs, colours, strict=True):
        _flash(rng, film, pair, _lamp(rng), jittered_colour(rng, colour))
    asked = rng.randrange(2)
    return Drawn(
        part=_part(film, noise_generator(rng, split)),
        answer=colours[asked],
        words={"place": ("first", "last")[asked]},
    )


def _draw_flashes(rng: random.Random, split: Split) -> Drawn:
    count = rng.randint(1, _MAX_FLASHES)
    film = _flashing(rng, split, _FLASHES_PAIRS, _apart(rng, count, _FLASHES_PAIRS))
    return Drawn(part=_part(film, noise_generator(rng, split)), answer=str(count))


def _draw_first(rng: random.Random, split: Split) -> Drawn:
    early = rng.randrange(_SHORT_PAIRS - 1)
    flash, beep = rng.choice(((early, early + 1), (early + 1, early)))
    noise = noise_generator(rng, split)
    film = _flashing(rng, split, _SHORT_PAIRS, [flash])
    sound = _beeping(rng, split, noise, _SHORT_PAIRS, [beep])
    return Drawn(part=_part(film, noise, sound), answer="flash" if flash < beep else "beep")


def _draw_agree(rng: random.Random, split: Split) -> Drawn:
    agree, flashes = rng.random() < 0.5, rng.randint(1, _MAX_AGREE)
    others = [count for count in range(1, _MAX_AGREE + 1) if count != flashes]
    beeps = flashes if agree else rng.choice(others)
    noise = noise_generator(rng, split)
    film = _flashing(rng, split, _AGREE_PAIRS, _apart(rng, flashes, _AGREE_PAIRS))
    seconds = sorted(rng.sample(range(_AGREE_PAIRS), beeps))
    sound = _beeping(rng, split, noise, _AGREE_PAIRS, seconds)
    return Drawn(part=_part(film, noise, sound), answer="yes" if agree else "no")


_HUES = (
    "Backgrounds have hues of one of four sixteenths of the circle in the test split, of the other "
    "twelve in training."
)
_TIMBRES = (
    _HUES + " So have beeps an octave of three to five eighths of its greatest strength, or of "
    "less or more."
)

VIDEO_TASKS: tuple[MediaTask, ...] = (
    MediaTask(
        name="motion",
        modality="video",
        definition=(
            f"Which way ({', '.join(_DIRECTIONS)}) a dot goes, by 26 pixels or more of 64, in 4, 6 "
            "or 8 frames, slightly askew. Baseline: any direction. " + _HUES
        ),
        baseline=1 / len(_DIRECTIONS),
        questions=(
            "Which way does the dot move: left, right, up or down?",
            "Which way does the dot move?",
            "In which direction does the dot go?",
        ),
        draw=_draw_motion,
    ),
    MediaTask(
        name="order",
        modality="video",
        definition=(
            f"Two lamps of different colours ({', '.join(_LAMPS)}) flash in different seconds of "
            "four: which one first, or last. Baseline: any colour; who sees both colours and not "
            "their order has 1/2. " + _HUES
        ),
        baseline=1 / len(_LAMPS),
        questions=(
            "Which colour flashes {place}?",
            "What is the colour of the flash that comes {place}?",
            "Two lamps flash. Which one is {place}?",
        ),
        draw=_draw_order,
    ),
    MediaTask(
        name="flashes",
        modality="video",
        definition=(
            "How many times (1 to 4) a lamp flashes in eight seconds, with a dark second between. "
            "Baseline: any number. " + _HUES
        ),
        baseline=1 / _MAX_FLASHES,
        questions=(
            "How many flashes are there?",
            "Count the flashes.",
            "How many times does the lamp flash?",
        ),
        draw=_draw_flashes,
    ),
    MediaTask(
        name="first",
        modality="video",
        definition=(
            "A flash and a beep in neighbouring seconds of four: which one came first. Baseline: "
            "either; by the picture alone, or the sound alone, 2/3, as the first second can only "
            "be the first. " + _TIMBRES
        ),
        baseline=1 / 2,
        questions=(
            "Which came first: the flash or the beep?",
            "Flash or beep: which was first?",
            "What came first, the beep or the flash?",
        ),
        draw=_draw_first,
    ),
    MediaTask(
        name="agree",
        modality="video",
        definition=(
            "Whether there are as many beeps as flashes in six seconds, 1 to 3 of each, beeps in "
            "any seconds. Baseline: either; by the picture alone, or the sound alone, 1/2. "
            + _TIMBRES
        ),
        baseline=1 / 2,
        questions=(
            "Are there as many beeps as flashes?",
            "Is the number of beeps equal to the number of flashes?",
            "Do beeps and flashes agree in number?",
        ),
        draw=_draw_agree,
    ),
)
