"""The colour probe: what is on its pictures, and what a model gets that sees half of it."""

from collections import Counter

import numpy as np
import pytest

from mimo_engine.cli.colour_probe import COLOURS, colour_probes, named_colour


def halves(probe):
    """The one colour of each half, as RGB."""
    middle = probe.image.shape[1] // 2
    sides = (probe.image[:, :middle], probe.image[:, middle:])
    colours = [np.unique(side.reshape(-1, 3), axis=0) for side in sides]
    assert [len(found) for found in colours] == [1, 1]
    return [tuple(map(int, found[0])) for found in colours]


def test_the_probes_are_squares_of_three_sizes_and_no_two_ask_the_same():
    probes = colour_probes()
    assert Counter(probe.image.shape for probe in probes) == {
        (side, side, 3): 8 for side in (64, 224, 448)
    }
    assert all(probe.image.dtype == np.uint8 for probe in probes)
    assert len({(probe.image.tobytes(), probe.question) for probe in probes}) == len(probes) == 24


def test_the_answer_is_the_colour_of_what_is_asked_for():
    for probe in colour_probes():
        left, right = halves(probe)
        expected = right if "right half" in probe.question else left
        assert COLOURS[probe.colour] == expected
        assert (left != right) == ("half" in probe.question)


@pytest.mark.parametrize("always", COLOURS)
def test_naming_one_colour_always_is_right_on_a_quarter(always):
    assert sum(probe.colour == always for probe in colour_probes()) == 6


def test_seeing_colours_but_not_places_is_right_on_three_quarters_at_best():
    names = {rgb: name for name, rgb in COLOURS.items()}
    right = sum(probe.colour == names[halves(probe)[0]] for probe in colour_probes())
    assert right == 18


def test_the_likeliest_colour_is_named_and_a_tie_names_none():
    assert named_colour([-3.0, -1.0, -2.0, -4.0]) == "Green"
    assert named_colour([-1.0, -1.0, -2.0, -4.0]) is None
