"""Sizes, pixel values and their order: the vectors of vision.md 8.1 and 8.2, and properties."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from media_config import processor_config
from media_files import gradient
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.pixels import (
    PatchWriter,
    Resizer,
    Size,
    hub_resize,
    pixel_limits,
    smart_resize,
    to_bfloat16,
)

CONFIG = processor_config()
OWN = {"factor": 32, "min_pixels": 8192, "max_pixels": 8388608}
HUB = {"factor": 32, "min_pixels": 3136, "max_pixels": 12845056}

# (width, height) to (height, width) by our rule and by that of preprocessor_config.json.
SIZES = [
    ((640, 480), (480, 640), (480, 640)),
    ((100, 37), (64, 160), (64, 96)),
    ((37, 100), (160, 64), (96, 64)),
    ((4000, 3000), (2496, 3328), (3008, 4000)),
    ((8000, 6000), (2496, 3328), (3072, 4128)),
    ((1920, 1080), (1088, 1920), (1088, 1920)),
    ((1280, 720), (704, 1280), (704, 1280)),
    ((3840, 2160), (2176, 3840), (2176, 3840)),
    ((4096, 4096), (2880, 2880), (3584, 3584)),
    ((224, 224), (224, 224), (224, 224)),
    ((1500, 1001), (992, 1504), (992, 1504)),
    ((173, 197), (192, 160), (192, 160)),
    ((32, 32), (96, 96), (64, 64)),
    ((33, 33), (96, 96), (64, 64)),
    ((16, 16), (96, 96), (64, 64)),
    ((1, 1), (96, 96), (64, 64)),
    ((28, 100), (192, 64), (128, 32)),
    ((16, 192), (384, 32), (224, 32)),
    ((10, 4000), (12800, 32), None),
    ((32, 6400), (6400, 32), (6400, 32)),
    ((32, 6401), None, None),
]
TOKENS = {
    (640, 480): (300, 300), (100, 37): (10, 6), (4000, 3000): (8112, 11750),
    (8000, 6000): (8112, 12384), (1920, 1080): (2040, 2040), (1280, 720): (880, 880),
    (3840, 2160): (8160, 8160), (4096, 4096): (8100, 12544), (224, 224): (49, 49),
    (1500, 1001): (1457, 1457), (173, 197): (30, 30), (1, 1): (9, 4), (28, 100): (12, 4),
    (16, 192): (12, 7), (10, 4000): (400, None), (32, 6400): (200, 200),
}  # fmt: skip


def patches(*pictures, target, config=CONFIG, dtype="float32"):
    """The rows of one grid step; one picture stands for both frames."""
    writer = PatchWriter(config, Size(*target), dtype)
    rows = np.full(
        (math.prod(writer.grid_hw), config.patch_dim),
        *((np.nan, np.float32) if dtype == "float32" else (0x7FC0, np.uint16)),
    )
    for frame, picture in enumerate(pictures):
        end = frame + 1 if len(pictures) == 2 else 2
        writer.write(picture, rows, slice(frame, end))
    return rows


@pytest.mark.parametrize(("source", "own", "hub"), SIZES)
def test_a_picture_gets_the_size_of_the_fact_sheet(source, own, hub):
    width, height = source
    for rule, limits, wanted, column in ((smart_resize, OWN, own, 0), (hub_resize, HUB, hub, 1)):
        if wanted is None:
            with pytest.raises(RequestError, match="too thin"):
                rule(height, width, **limits)
            continue
        size = rule(height, width, **limits)
        assert size == wanted
        if source in TOKENS:
            assert size.height * size.width // 32**2 == TOKENS[source][column]


@pytest.mark.parametrize(("width", "height"), [(20_000, 20), (20, 20_000), (1, 8193), (1, 513)])
def test_a_picture_that_would_vanish_is_refused(width, height):
    with pytest.raises(RequestError, match=f"{width} x {height} pixels is too thin"):
        smart_resize(height, width, **OWN)


def test_a_strip_that_does_not_fit_the_pixels_of_a_frame_is_refused():
    limits = {"factor": 32, "min_pixels": 8192, "max_pixels": 149_130}
    with pytest.raises(RequestError, match="too thin to be shrunk to 149130 pixels"):
        smart_resize(32, 6400, **limits)


SIDES = st.integers(1, 20_000)


@given(SIDES, SIDES, st.sampled_from([(8192, 8388608), (8192, 149_130), (3136, 12845056)]))
def test_sizes_are_multiples_of_the_factor_within_the_limits(height, width, limits):
    low, high = limits
    for rule in (smart_resize, hub_resize):
        try:
            size = rule(height, width, factor=32, min_pixels=low, max_pixels=high)
        except RequestError:
            assert max(height, width) > 200 * min(height, width) or high == 149_130
            continue
        assert size.height > 0
        assert size.width > 0
        assert size.height % 32 == size.width % 32 == 0
        assert size.height * size.width >= low or rule is hub_resize or max(size) > 32 * min(size)
        if rule is smart_resize:
            assert size.height * size.width <= high


@given(st.integers(300, 3000), st.integers(300, 3000))
def test_a_picture_keeps_its_shape(height, width):
    size = smart_resize(height, width, **OWN)
    # Half a factor of rounding on either side.
    assert abs(size.height / size.width - height / width) <= 0.06 * height / width + 0.06


@pytest.mark.parametrize(
    ("asked", "given_limits"),
    [
        ((None, None), (8192, 100_000)),
        ((4096, None), (4096, 100_000)),
        ((None, 50_000), (8192, 50_000)),
        ((None, 1024), (1024, 1024)),
        ((100_000, 100_000), (100_000, 100_000)),
    ],
)
def test_a_request_chooses_pixels_within_the_models(asked, given_limits):
    assert pixel_limits(8192, 100_000, *asked) == given_limits


@pytest.mark.parametrize("asked", [(0, None), (None, 0), (None, 100_001), (100_001, None)])
def test_pixels_beyond_the_models_are_refused(asked):
    with pytest.raises(RequestError, match=r"must be 1 \.\.\. 100000"):
        pixel_limits(8192, 100_000, *asked)


def test_crossed_pixel_limits_are_refused():
    with pytest.raises(RequestError, match="min_pixels is 3000, above max_pixels"):
        pixel_limits(8192, 100_000, 3000, 2000)


def test_patches_of_a_picture_are_those_of_the_fact_sheet():
    rows = patches(gradient(160, 128), target=(128, 160))
    assert rows.shape == (80, 1536)
    assert rows.sum(dtype=np.float64) == pytest.approx(3799.582, abs=2e-3)
    assert np.abs(rows).sum(dtype=np.float64) == pytest.approx(112044.273, abs=2e-3)
    wanted = {
        0: "-1.79226 -1.76307 -1.79226 -1.79226 -1.75210 -1.75210 -1.48022 -1.48022 -1.05362",
        1: "-1.32511 -1.29592 -1.32511 -1.32511 -1.75210 -1.75210 -1.25270 -1.25270 -0.82610",
        2: "-1.79226 -1.76307 -1.79226 -1.79226 -1.03172 -1.03172 -1.25270 -1.25270 -0.82610",
        3: "-1.32511 -1.29592 -1.32511 -1.32511 -1.03172 -1.03172 -1.02518 -1.02518 -0.59858",
        4: "-0.85796 -0.82877 -0.85796 -0.85796 -1.75210 -1.75210 -1.02518 -1.02518 -0.59858",
        79: "-1.32511 -1.29592 -1.32511 -1.32511 -0.55148 -0.55148 -1.48022 -1.48022 -1.05362",
    }
    columns = [0, 1, 16, 256, 512, 768, 1024, 1280, 1535]
    for row, values in wanted.items():
        assert rows[row, columns] == pytest.approx([float(v) for v in values.split()], abs=6e-6)


def test_patches_of_a_resized_picture_are_those_of_the_fact_sheet():
    y, x = np.mgrid[:197, :173]
    picture = np.stack([(7 * x + y) % 256, 3 * y % 256, x ^ y], axis=-1).astype(np.uint8)
    rows = patches(picture, target=smart_resize(197, 173, **OWN))
    assert rows.shape == (120, 1536)
    assert rows.sum(dtype=np.float64) == pytest.approx(14645.563, abs=0.02)
    assert np.abs(rows).sum(dtype=np.float64) == pytest.approx(172980.727, abs=0.02)
    wanted = {
        0: "-1.78792 -1.67743 -1.77294 -1.78792 -1.75151 -1.47947 -1.21804",
        1: "-0.02005 0.09044 -0.00507 -0.02005 -1.75151 -1.23369 -0.81041",
        60: "-0.34998 -0.23948 -0.33500 -0.34998 -1.15870 -0.07937 -0.08505",
        119: "1.81035 0.08918 1.82533 1.81035 -1.30503 -0.88152 0.00390",
    }
    columns = [0, 1, 16, 256, 512, 1024, 1535]
    for row, values in wanted.items():
        assert rows[row, columns] == pytest.approx([float(v) for v in values.split()], abs=1e-5)


def test_two_flat_frames_share_a_row():
    dark, light = (np.full((32, 32, 3), value, np.uint8) for value in (10, 200))
    rows = patches(dark, light, target=(32, 32))
    assert rows.shape == (4, 1536)
    wanted = {0: -1.6463, 255: -1.6463, 256: 1.1274, 511: 1.1274, 512: -1.6020, 768: 1.2495}
    for column, value in wanted.items():
        assert rows[0, column] == pytest.approx(value, abs=6e-5)


@pytest.mark.parametrize(
    ("stats", "black", "white"),
    [
        ("clip", (-1.79226, -1.75210, -1.48022), (1.93034, 2.07488, 2.14590)),
        ("imagenet", (-2.11790, -2.03571, -1.80444), (2.24891, 2.42857, 2.64000)),
    ],
)
def test_black_and_white_by_both_statistics(stats, black, white):
    config = processor_config(MediaFacts(pixel_stats=stats))
    for value, wanted in ((0, black), (255, white)):
        picture = np.full((32, 32, 3), value, np.uint8)
        rows = patches(picture, target=(32, 32), config=config).reshape(4, 3, 512)
        assert rows[:, :, 0].tolist() == [pytest.approx(wanted, abs=6e-6)] * 4
        assert (rows == rows[:, :, :1]).all()


def test_a_row_says_where_its_pixels_were():
    # Three whole bytes tell 64 x 96 pixels of two frames apart.
    y, x = np.mgrid[:64, :96]
    frames = [np.stack([y, x, np.full_like(x, f)], axis=-1).astype(np.uint8) for f in (0, 1)]
    plain = replace(CONFIG, image_mean=(0.0, 0.0, 0.0), image_std=(1 / 255,) * 3)
    rows = patches(*frames, target=(64, 96), config=plain).astype(int)
    row = 0
    for top in (0, 32):
        for left in (0, 32, 64):
            for dy in (0, 16):
                for dx in (0, 16):
                    for frame in (0, 1):
                        for py, px in ((0, 0), (3, 5), (15, 15)):
                            at = frame * 256 + py * 16 + px
                            pixel = rows[row, [at, 512 + at, 1024 + at]].tolist()
                            assert pixel == [top + dy + py, left + dx + px, frame]
                    row += 1
    assert row == len(rows)


def linear(source, position):
    """`source` at a fractional position, its ends extended: exact."""
    position = max(position, Fraction(0))
    low = min(int(position), len(source) - 1)
    high = min(low + 1, len(source) - 1)
    return source[low] + (position - low) * (source[high] - source[low])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_resizing_is_linear_between_half_pixel_centres(height, width, target, seed):
    picture = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    resized = Resizer(Size(height, width), Size(target, width)).rows(picture, 0, target)
    assert resized.shape == (target, 3, width)
    for i in (0, target // 2, target - 1):
        position = Fraction(2 * i + 1, 2) * height / target - Fraction(1, 2)
        exact = float(linear([int(v) for v in picture[:, 0, 1]], position))
        assert resized[i, 1, 0] == pytest.approx(exact, abs=3e-3)
    turned = np.ascontiguousarray(picture.transpose(1, 0, 2))
    across = Resizer(Size(width, height), Size(width, target)).rows(turned, 0, width)
    np.testing.assert_allclose(across.transpose(2, 1, 0), resized, atol=1e-4)


def test_rows_do_not_depend_on_how_many_are_asked_for():
    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    resizer = Resizer(Size(50, 70), Size(64, 32))
    whole = resizer.rows(picture, 0, 64)
    parts = [resizer.rows(picture, start, start + 16) for start in range(0, 64, 16)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_picture_may_be_a_view_and_is_left_alone():
    picture = np.random.default_rng(2).integers(0, 256, (64, 48, 3), np.uint8)
    picture.flags.writeable = False
    for view in (picture, np.rot90(picture), picture[::-1, ::2]):
        wanted = patches(np.ascontiguousarray(view), target=(96, 96))
        np.testing.assert_array_equal(patches(view, target=(96, 96)), wanted)


def test_pictures_of_different_sizes_may_follow_one_another():
    small, large = gradient(40, 50), gradient(90, 70)
    both = patches(small, large, target=(64, 64)).reshape(-1, 3, 2, 256)
    np.testing.assert_array_equal(both[:, :, 0], patches(small, target=(64, 64)).reshape(
        -1, 3, 2, 256)[:, :, 0])  # fmt: skip
    np.testing.assert_array_equal(both[:, :, 1], patches(large, target=(64, 64)).reshape(
        -1, 3, 2, 256)[:, :, 1])  # fmt: skip


def test_the_bicubic_filter_smooths_what_bilinear_skips():
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::4] = 255
    plain = {"image_mean": (0.0, 0.0, 0.0), "image_std": (1 / 255,) * 3}
    facts = MediaFacts(resize_filter="bicubic_antialias")
    smooth = patches(stripes, target=(64, 64), config=processor_config(facts, **plain))
    rough = patches(stripes, target=(64, 64), config=processor_config(**plain))
    assert (smooth == smooth.round()).all()
    # The window is cut off at the borders.
    assert (abs(smooth - 64) <= 2).mean() > 0.9
    assert smooth.mean() == pytest.approx(64, abs=1)
    assert abs(rough.mean() - 64) > 30


def nearest_even(value):
    """`value` as bfloat16 bits, by exact arithmetic."""
    bits = np.float32(value).view(np.uint32)
    low, rest = int(bits) >> 16, int(bits) & 0xFFFF
    return low + (rest > 0x8000 or (rest == 0x8000 and low & 1))


@given(npst.arrays(np.float32, st.integers(1, 20), elements=st.floats(width=32, allow_nan=False)))
def test_bfloat16_is_the_nearest_even(values):
    assert to_bfloat16(values).tolist() == [nearest_even(value) for value in values]


def test_bfloat16_keeps_special_values():
    bits = np.array(
        [0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x80000000, 1],
        np.uint32,
    )
    wanted = [0x7FC0, 0x7FC0, 0x7FC0, 0x7F80, 0xFF80, 0x7F80, 0x8000, 0]
    assert to_bfloat16(bits.view(np.float32)).tolist() == wanted


@given(st.integers(1, 60), st.integers(1, 60))
def test_bfloat16_patches_are_the_rounded_float32_ones(height, width):
    assume(max(height, width) <= 100 * min(height, width))
    picture = gradient(width, height)
    exact = patches(picture, target=(32, 64))
    rounded = patches(picture, target=(32, 64), dtype="bfloat16")
    np.testing.assert_array_equal(rounded, to_bfloat16(exact))
