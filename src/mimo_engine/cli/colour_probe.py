"""Pictures whose colours anyone can name, for `check --towers`.

Flat squares in four colours, and squares of two colours side by side, each half asked for. Every
colour is the answer equally often, so a model that sees none is right on a quarter of them, and
one that sees colours but not where they are on three quarters.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = ["COLOURS", "ColourProbe", "colour_probes", "named_colour"]

COLOURS = {
    "Red": (255, 0, 0),
    "Green": (0, 255, 0),
    "Blue": (0, 0, 255),
    "Yellow": (255, 255, 0),
}
_PAIRS = (("Red", "Blue"), ("Green", "Yellow"))
_SIDES = (64, 224, 448)
"""Below a window of the tower, a picture of usual size, and one of many windows."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ColourProbe:
    """One picture and one question about it."""

    image: np.ndarray
    """uint8 [side, side, 3]."""
    question: str
    colour: str
    """The right answer, one of COLOURS."""


def colour_probes() -> list[ColourProbe]:
    """24: four colours, and two pairs of which both halves are asked for, in three sizes each."""
    probes = []
    for side in _SIDES:
        probes += [_probe(side, colour, colour, "this image", colour) for colour in COLOURS]
        for left, right in _PAIRS:
            probes.append(_probe(side, left, right, "the left half of this image", left))
            probes.append(_probe(side, left, right, "the right half of this image", right))
    return probes


def _probe(side: int, left: str, right: str, place: str, colour: str) -> ColourProbe:
    image = np.empty((side, side, 3), np.uint8)
    image[:, : side // 2] = COLOURS[left]
    image[:, side // 2 :] = COLOURS[right]
    question = f"What colour is {place}? Answer with one word."
    return ColourProbe(image=image, question=question, colour=colour)


def named_colour(scores: Sequence[float]) -> str | None:
    """The colour with the highest of `scores`, which are in the order of COLOURS; None for a tie:
    a model that cannot tell colours apart is right by no accident of their order."""
    best = max(scores)
    named = [colour for colour, score in zip(COLOURS, scores, strict=True) if score == best]
    return named[0] if len(named) == 1 else None
