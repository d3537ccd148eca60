"""Reads the demo model's media back without knowing how they were drawn: what stands out of the
background, in how many pieces, of which colour, shape and text; when something is loud."""

import itertools
import math

import numpy as np

from mimo_engine.demo.drawing import COLOURS, SHAPES, Figure, shape_mask
from mimo_engine.demo.glyphs import STYLES, text_mask

_STANDS_OUT = 30
"""Steps of a channel. Noise is 6, and the light is a plane but for the rounding."""


def foreground(picture):
    """bool [H, W]: pixels that are off the plane through the picture's outermost ones."""
    height, width, _ = picture.shape
    y, x = np.mgrid[:height, :width]
    plane = np.stack([np.ones_like(x), x, y], axis=-1).reshape(-1, 3)
    edge = ((x % (width - 1) == 0) | (y % (height - 1) == 0)).ravel()
    colours = picture.reshape(-1, 3).astype(float)
    fit = np.linalg.lstsq(plane[edge], colours[edge], rcond=None)[0]
    return (np.abs(colours - plane @ fit).max(axis=1) > _STANDS_OUT).reshape(height, width)


def pieces(mask):
    """The mask of each connected piece of more than 8 pixels, corners included."""
    found, left = [], mask.copy()
    while left.any():
        piece = np.zeros_like(mask)
        piece.flat[np.flatnonzero(left)[0]] = True
        size = 0
        while piece.sum() > size:
            size = piece.sum()
            grown = np.pad(piece, 1)
            piece = left & np.max(
                [
                    grown[dy : dy + mask.shape[0], dx : dx + mask.shape[1]]
                    for dy, dx in itertools.product(range(3), repeat=2)
                ],
                axis=0,
            )
        left &= ~piece
        if size > 8:
            found.append(piece)
    return found


def centre(mask):
    y, x = np.nonzero(mask)
    return x.mean(), y.mean()


def colour(picture, mask):
    """The name of the colour nearest to the middle one of the pixels."""
    middle = np.median(picture[mask], axis=0)
    return min(COLOURS, key=lambda name: np.abs(middle - COLOURS[name]).sum())


def overlap(left, right):
    """Of two masks, 0 ... 1."""
    return np.minimum(left, right).sum() / np.maximum(left, right).sum()


def shape(mask):
    """The name of the shape that covers the mask best, at its centre and with its area."""
    x, y = centre(mask)
    down, across = np.ogrid[: mask.shape[0], : mask.shape[1]]
    dx, dy = across - x, down - y

    def cover(name, tilt):
        unit = shape_mask(Figure(shape=name, x=0, y=0, radius=20, tilt=tilt), dx, dy).sum()
        radius = 20 * math.sqrt(mask.sum() / unit)
        return overlap(
            mask, shape_mask(Figure(shape=name, x=x, y=y, radius=radius, tilt=tilt), dx, dy)
        )

    tilts = np.radians(np.arange(-15, 16, 5))
    return max(SHAPES, key=lambda name: max(cover(name, tilt) for tilt in tilts))


def text(mask, candidates, heights):
    """The candidate that covers the mask best, of all typefaces and heights."""
    rows, columns = np.nonzero(mask)
    ink = mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].astype(float)

    def cover(candidate):
        best = 0.0
        for style, height in itertools.product(STYLES["train"] + STYLES["test"], heights):
            other = text_mask(candidate, style, height, mask.shape[1]) > 0.5
            if max(abs(a - b) for a, b in zip(ink.shape, other.shape, strict=True)) <= 2:
                common = tuple(map(min, zip(ink.shape, other.shape, strict=True)))
                best = max(best, overlap(*(m[: common[0], : common[1]] for m in (ink, other))))
        return best

    return max(candidates, key=cover)


def lit_pairs(frames):
    """Indices of the pairs of frames in which something stands out."""
    lit = [foreground(frame).sum() > 8 for frame in frames]
    return [pair for pair in range(len(lit) // 2) if any(lit[2 * pair : 2 * pair + 2])]


def loud_spans(samples, rate, rest_s=0.06):
    """(first, last) seconds of what is loud, a rest shorter than `rest_s` notwithstanding."""
    step = rate // 100
    usable = samples[: len(samples) // step * step].reshape(-1, step)
    level = np.sqrt(np.square(usable).mean(axis=1))
    loud = np.flatnonzero(level > 3 * np.quantile(level, 0.05))
    if not len(loud):
        return []
    breaks = np.flatnonzero(np.diff(loud) > rest_s * 100)
    firsts, lasts = np.r_[loud[0], loud[breaks + 1]], np.r_[loud[breaks], loud[-1]]
    return [(first / 100, (last + 1) / 100) for first, last in zip(firsts, lasts, strict=True)]


def loudest_hz(samples, rate):
    power = np.abs(np.fft.rfft(samples * np.hanning(len(samples)), 1 << 16))
    return np.argmax(power) * rate / (1 << 16)


def said(samples, clips):
    """The names of the clips that the samples hold as they are, but for their level, in order.

    clips: {name: samples}. A clip counts where it correlates by more than 0.9.
    """
    size = 1 << (2 * len(samples)).bit_length()
    spectrum = np.fft.rfft(samples, size)
    energy = np.cumsum(np.r_[0.0, np.square(samples, dtype=float)])
    found = []
    for name, clip in clips.items():
        num_places = len(samples) - len(clip) + 1
        if num_places < 1:
            continue
        product = np.fft.irfft(spectrum * np.conj(np.fft.rfft(clip, size)), size)[:num_places]
        local = energy[len(clip) :] - energy[:num_places]
        likeness = product / np.sqrt(local * np.square(clip, dtype=float).sum())
        places = np.flatnonzero(likeness > 0.9)
        for group in np.split(places, np.flatnonzero(np.diff(places) > 1000) + 1):
            if len(group):
                found.append((group[0], name))
    return [name for _, name in sorted(found)]
