"""Pictures of shapes and lamps: plain arrays, anti-aliased by distance to the outline.

Every picture has a tinted, slightly lit background. Its hue is what the splits differ by: of
16 sectors of the circle of hues, every fourth belongs to the test split. So no picture of one split
is one of the other, whatever is drawn on it.
"""

from __future__ import annotations

import colorsys
import math
import random
from dataclasses import dataclass

import numpy as np

from mimo_engine.demo.task import Split

__all__ = [
    "COLOURS",
    "SHAPES",
    "Figure",
    "add_noise",
    "background",
    "background_hue",
    "draw_figure",
    "jittered_colour",
    "paint",
    "random_tilt",
    "scattered_centres",
    "shape_mask",
]

COLOURS = {
    "red": (215, 35, 35),
    "orange": (245, 135, 20),
    "yellow": (240, 225, 45),
    "green": (35, 160, 50),
    "blue": (40, 70, 215),
    "purple": (140, 45, 165),
    "white": (243, 243, 243),
    "black": (14, 14, 14),
}
"""Apart from each other, and from every background, by more than twice what they are jittered."""

SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")

_JITTER = 12
"""Of a colour's channels, of 255."""
_NOISE = 6
_NUM_SECTORS = 16
_TEST_EVERY = 4
_TILT = math.radians(15)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A shape at a place. Pixels; the centre is (x, y), y downwards, and nothing is painted further
    from it than `radius` and half a pixel."""

    shape: str
    x: float
    y: float
    radius: float
    tilt: float = 0.0
    """Radians."""


def background_hue(rng: random.Random, split: Split) -> float:
    """0 ... 1, of the sectors of this split alone."""
    quarter = rng.randrange(_NUM_SECTORS // _TEST_EVERY)
    inside = 0 if split == "test" else rng.randrange(1, _TEST_EVERY)
    return (quarter * _TEST_EVERY + inside + rng.random()) / _NUM_SECTORS


def background(rng: random.Random, split: Split, width: int, height: int) -> np.ndarray:
    """float32 [height, width, 3], 0 ... 255: a dull tint, lit from one side."""
    hue, value = background_hue(rng, split), rng.uniform(0.38, 0.62)
    tint = 255 * np.asarray(colorsys.hsv_to_rgb(hue, rng.uniform(0.08, 0.2), value), np.float32)
    across, down = rng.uniform(-0.06, 0.06), rng.uniform(-0.06, 0.06)
    light = 1 + np.add.outer(
        np.linspace(-down, down, height, dtype=np.float32),
        np.linspace(-across, across, width, dtype=np.float32),
    )
    return light[..., None] * tint


def jittered_colour(rng: random.Random, name: str) -> np.ndarray:
    """float32 [3], 0 ... 255."""
    shades = [channel + rng.uniform(-_JITTER, _JITTER) for channel in COLOURS[name]]
    return np.clip(np.asarray(shades, np.float32), 0, 255)


def paint(canvas: np.ndarray, mask: np.ndarray, x: int, y: int, colour: np.ndarray) -> None:
    """Lay a colour over the canvas, in place, where the mask says how much (0 ... 1).

    canvas: float32 [..., height, width, 3], of which all leading axes are painted alike. mask:
    float32 [rows, columns], its corner at (x, y), wholly inside the canvas.
    """
    assert min(x, y) >= 0, "painted outside of the canvas"
    rows, columns = mask.shape
    area = canvas[..., y : y + rows, x : x + columns, :]
    area += mask[..., None] * (colour - area)


def draw_figure(canvas: np.ndarray, figure: Figure, colour: np.ndarray) -> None:
    """Paint a figure that lies inside the canvas; see `paint`."""
    reach = math.ceil(figure.radius) + 1
    left, top = math.floor(figure.x) - reach, math.floor(figure.y) - reach
    side = 2 * reach + 1
    dx = np.arange(side, dtype=np.float32) + (left - figure.x)
    dy = np.arange(side, dtype=np.float32) + (top - figure.y)
    paint(canvas, shape_mask(figure, dx[None, :], dy[:, None]), left, top, colour)


def shape_mask(figure: Figure, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """How much of each pixel is inside, 0 ... 1, by the distance to the outline.

    dx, dy: offsets of pixel centres from the figure's, float32, broadcast against each other.
    """
    cos, sin = math.cos(figure.tilt), math.sin(figure.tilt)
    distance = _distance(figure.shape, cos * dx + sin * dy, cos * dy - sin * dx, figure.radius)
    return np.clip(0.5 - distance, 0, 1)


def add_noise(canvas: np.ndarray, noise: np.random.Generator) -> np.ndarray:
    """uint8 of the canvas's shape: rounded, with a few steps of noise on every pixel."""
    steps = noise.integers(-_NOISE, _NOISE, canvas.shape, np.int8, endpoint=True)
    return np.clip(canvas + steps, 0, 255).astype(np.uint8)


def scattered_centres(
    rng: random.Random, count: int, width: int, height: int, margin: float, distance: float
) -> list[tuple[float, float]]:
    """Points in a rectangle, `margin` from its edges and `distance` from each other.

    Drawn anew as a whole when they do not fit, so that no place is likelier for being drawn late.
    """
    while True:
        points = [
            (rng.uniform(margin, width - 1 - margin), rng.uniform(margin, height - 1 - margin))
            for _ in range(count)
        ]
        if all(
            math.dist(point, other) >= distance
            for i, point in enumerate(points)
            for other in points[:i]
        ):
            return points


def random_tilt(rng: random.Random) -> float:
    """Radians, too few to make another shape of one."""
    return rng.uniform(-_TILT, _TILT)


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """To the outline, negative inside; a bound of it near corners. No corner leaves the radius."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.75 * radius) - 0.25 * radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - radius / math.sqrt(2)
    if shape == "cross":
        long, short = 0.94 * radius, 0.31 * radius
        x, y = np.abs(x), np.abs(y)
        return np.minimum(np.maximum(x - long, y - short), np.maximum(x - short, y - long))
    if shape == "triangle":
        slanted = math.sqrt(0.75) * np.abs(x) - 0.5 * y
        return np.maximum(slanted, y) - radius / 2
    assert shape == "star", f"no shape is called {shape}"
    return _star_distance(x, y, radius)


def _star_distance(x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Five points, one upwards: folded by its ten mirrors, the outline is one straight edge."""
    fifth = 2 * math.pi / 5
    angle = np.abs((np.arctan2(x, -y) + fifth / 2) % fifth - fifth / 2)
    length = np.hypot(x, y)
    along, aside = length * np.cos(angle), length * np.sin(angle)
    inner = 0.45 * radius
    edge_along, edge_aside = inner * math.cos(fifth / 2) - radius, inner * math.sin(fifth / 2)
    edge = math.hypot(edge_along, edge_aside)
    return ((along - radius) * edge_aside - aside * edge_along) / edge
