"""Orders, coordinates and rotary tables of patches, against vision.md 8.3."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.model.vision_grid import (
    column_order,
    frame_lengths,
    inverse_order,
    patch_coordinates,
    reorder_units,
    rotary_tables,
)


def tables(grids, head_dim=64):
    return rotary_tables(grids, merge_size=2, head_dim=head_dim, theta=10000.0, device="cpu")


def test_rows_of_patches_go_unit_by_unit():
    places = patch_coordinates((1, 4, 6), 2, "cpu").tolist()
    assert places[:8] == [[0, 0], [0, 1], [1, 0], [1, 1], [0, 2], [0, 3], [1, 2], [1, 3]]
    assert sorted(places) == [[y, x] for y in range(4) for x in range(6)]


def test_column_order_goes_down_the_columns_inside_every_frame():
    order = column_order([(1, 4, 6), (2, 4, 4)], 2, "cpu")
    assert order.tolist() == [0, 3, 1, 4, 2, 5, 6, 8, 7, 9, 10, 12, 11, 13]
    assert inverse_order(order[:6]).tolist() == [0, 2, 4, 1, 3, 5]


def test_a_reordered_unit_keeps_the_order_of_its_patches():
    x = torch.arange(24)
    assert reorder_units(x, torch.tensor([2, 0, 1]), 8).tolist() == [
        *range(16, 24),
        *range(16),
    ]


GRIDS = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4
)


@given(grids=GRIDS, merge_size=st.sampled_from([1, 2, 3]))
def test_columns_follow_each_other_and_the_way_back_is_exact(grids, merge_size):
    grids = [(t, rows * merge_size, columns * merge_size) for t, rows, columns in grids]
    order = column_order(grids, merge_size, "cpu")
    unit = merge_size**2
    frames, places = [], []
    for t, h, w in grids:
        frame = (patch_coordinates((t, h, w), merge_size, "cpu") // merge_size)[::unit]
        for _ in range(t):
            frames += [len(frames)] * len(frame)
            places += frame.flip(1).tolist()
    labels = list(zip(frames, places, strict=True))
    moved = [labels[index] for index in order.tolist()]
    first_frames = [frame for frame, _ in moved]
    assert first_frames == frames
    expected = sorted(enumerate(labels), key=lambda entry: (frames[entry[0]], entry[1][1]))
    assert moved == [label for _, label in expected]
    x = torch.arange(len(order) * unit)
    there = reorder_units(x, order, unit)
    assert torch.equal(reorder_units(there, inverse_order(order), unit), x)


def test_every_frame_is_a_segment():
    assert frame_lengths([(1, 4, 6), (3, 2, 2)]) == [24, 4, 4, 4]


def test_frequencies_are_powers_of_theta_over_a_quarter_of_the_head():
    cos, sin = tables([(1, 2, 2)])
    angles = torch.atan2(sin, cos)
    # Patch 2 is (y, x) = (1, 0): its first 16 angles are the frequencies, the others are 0.
    expected = [1, 0.56234133, 0.31622777, 0.17782794]
    assert angles[2, :4].tolist() == pytest.approx(expected, abs=1e-7)
    assert angles[2, 15].item() == pytest.approx(0.00017782794, rel=1e-5)
    assert (angles[2, 16:] == 0).all()
    assert torch.equal(angles[1, 16:], angles[2, :16])


def test_tables_of_the_last_patch_of_a_640_by_480_image():
    cos, _ = tables([(1, 30, 40)])
    assert cos.shape == (1200, 32)
    assert cos[-1, [0, 1, 15]].tolist() == pytest.approx([-0.748058, -0.825372, 0.999987], abs=2e-6)
    assert cos[-1, [16, 17, 31]].tolist() == pytest.approx(
        [0.266643, -0.998210, 0.999976], abs=2e-6
    )
    assert cos[-1, 0].item() == pytest.approx(math.cos(29), abs=2e-6)


def test_tables_start_again_in_every_frame_and_item():
    cos, sin = tables([(2, 4, 4), (1, 2, 2)], head_dim=8)
    assert cos.shape == (36, 4)
    for table in (cos, sin):
        assert torch.equal(table[:16], table[16:32])
        assert torch.equal(table[:4], table[32:])
