"""Which frames, when and how large: the vectors of vision.md 8.5, and properties."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_config import processor_config
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.frame_sampling import sample_frames, video_rules
from mimo_engine.multimodal.inputs import VideoOptions

CONFIG = processor_config()
NTSC = float(Fraction(30000, 1001))


def rules_of(**options):
    return video_rules(CONFIG, VideoOptions(**options))


def sample(num_frames, source_fps, **options):
    return sample_frames(num_frames, source_fps, rules_of(**options))


def test_ten_seconds_are_ten_frames():
    frames = sample(300, 30.0)
    assert frames.indices == (0, 33, 66, 99, 132, 166, 199, 232, 265, 299)
    wanted = [0, 1.1, 2.2, 3.3, 4.4, 5.5333, 6.6333, 7.7333, 8.8333, 9.9667]
    assert frames.timestamps == pytest.approx(wanted, abs=4e-5)
    spacing = frames.timestamps[1] - frames.timestamps[0]
    assert 1 / spacing == pytest.approx(0.9091, abs=5e-5)
    assert frames.timestamps[-1] + spacing == pytest.approx(11.0667, abs=5e-5)


def test_timestamps_are_float32():
    frames = sample(300, NTSC)
    for index, time in zip(frames.indices, frames.timestamps, strict=True):
        assert time == float(np.float32(index) / np.float32(NTSC))


def texts(frames):
    """The first time of each step, as it is shown to the model."""
    return [f"{int(t // 60):02}:{int(t % 60):02}" for t in frames.timestamps[::2]]


# frames, fps, (width, height), options; then sampled frames, (height, width), (t, h, w), tokens a
# step, and what is left of the whole sequence without timestamps and marks.
CASES = [
    (300, 30, (1280, 720), {}, 10, (704, 1280), (5, 44, 80), 880, 4437),
    (300, 30, (1280, 720), {"fps": 2}, 20, (704, 1280), (10, 44, 80), 880, 8872),
    (300, 30, (1280, 720), {"fps": 2, "max_frames": 4}, 4, (704, 1280), (2, 44, 80), 880, 1776),
    (250, 25, (1920, 1080), {}, 10, (1088, 1920), (5, 68, 120), 2040, 10_237),
    (225, 15, (1280, 720), {}, 14, (704, 1280), (7, 44, 80), 880, 6211),
    (90, 30, (640, 480), {}, 8, (480, 640), (4, 30, 40), 300, 1230),
    (60, 30, (640, 480), {}, 8, (480, 640), (4, 30, 40), 300, 1230),
    (5, 30, (640, 480), {}, 4, (480, 640), (2, 30, 40), 300, 616),
    (3, 30, (640, 480), {}, 2, (480, 640), (1, 30, 40), 300, 309),
    (2, 30, (640, 480), {}, 2, (480, 640), (1, 30, 40), 300, 309),
    (18_000, 30, (1920, 1080), {}, 600, (704, 1248), (300, 44, 78), 858, 259_502),
    (108_000, 30, (1920, 1080), {}, 3600, (288, 512), (1800, 18, 32), 144, 271_802),
    (216_000, 30, (1920, 1080), {}, 3600, (288, 512), (1800, 18, 32), 144, 272_102),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]} frames, {case[3]}")
def test_a_video_gets_the_frames_and_the_size_of_the_fact_sheet(case):
    num_frames, fps, (width, height), options, count, size, grid, tokens, total = case
    frames = sample(num_frames, float(fps), **options)
    assert len(frames.indices) == count
    assert rules_of(**options).frame_size(height, width, count) == size
    assert (count // 2, size[0] // 16, size[1] // 16) == grid
    assert size[0] * size[1] // 1024 == tokens
    assert 2 + sum(len(text) + 2 + tokens for text in texts(frames)) == total


@pytest.mark.parametrize(
    ("num_frames", "fps", "options", "wanted"),
    [
        (300, 30, {"fps": 2, "max_frames": 4}, (0, 99, 199, 299)),
        (250, 25, {}, (0, 27, 55, 83, 110, 138, 166, 193, 221, 249)),
        (90, 30, {}, (0, 12, 25, 38, 50, 63, 76, 89)),
        (60, 30, {}, (0, 8, 16, 25, 33, 42, 50, 59)),
        (5, 30, {}, (0, 1, 2, 4)),
        (3, 30, {}, (0, 2)),
        (2, 30, {}, (0, 1)),
    ],
)
def test_frames_are_those_of_the_fact_sheet(num_frames, fps, options, wanted):
    assert sample(num_frames, float(fps), **options).indices == wanted


@pytest.mark.parametrize(
    ("num_frames", "fps", "options", "wanted"),
    [
        (300, 30, {}, "00:00 00:02 00:04 00:06 00:08"),
        (300, 30, {"fps": 2, "max_frames": 4}, "00:00 00:06"),
        (225, 15, {}, "00:00 00:02 00:04 00:06 00:09 00:11 00:13"),
        (90, 30, {}, "00:00 00:00 00:01 00:02"),
        (60, 30, {}, "00:00 00:00 00:01 00:01"),
        (5, 30, {}, "00:00 00:00"),
    ],
)
def test_times_are_those_of_the_fact_sheet(num_frames, fps, options, wanted):
    assert " ".join(texts(sample(num_frames, float(fps), **options))) == wanted


@pytest.mark.parametrize(
    ("num_frames", "last"), [(18_000, "09:58"), (108_000, "59:58"), (216_000, "119:57")]
)
def test_the_last_time_of_a_long_video(num_frames, last):
    assert texts(sample(num_frames, 30.0))[-1] == last


def test_the_number_of_frames_is_rounded_down_to_an_even_one():
    assert len(sample(299, NTSC).indices) == 8
    assert len(sample(300, NTSC).indices) == 10


@pytest.mark.parametrize(
    ("count", "most"), [(2, 8_388_608), (64, 8_388_608), (600, 894_784), (3600, 149_130)]
)
def test_frames_share_the_pixels_of_a_video(count, most):
    size = rules_of().frame_size(4000, 4000, count)
    assert size.height * size.width <= most
    assert (size.height + 32) * (size.width + 32) > most


@pytest.mark.parametrize(("num_frames", "said"), [(0, "0 frames"), (1, "1 frame,")])
def test_less_than_two_frames_are_refused(num_frames, said):
    with pytest.raises(RequestError, match=f"the video has {said}.*as an image"):
        sample(num_frames, 30.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_pixels": 8_388_609}, "max_pixels is 8388609"),
        ({"total_max_pixels": 268_435_457}, "total_max_pixels is 268435457"),
    ],
)
def test_more_pixels_than_the_checkpoint_has_are_refused(options, said):
    with pytest.raises(RequestError, match=said):
        rules_of(**options)


def test_options_left_out_are_those_of_the_checkpoint():
    rules = rules_of()
    for name in ("fps", "min_frames", "max_frames"):
        assert getattr(rules, name) == getattr(CONFIG, name)
    for name in ("min_pixels", "max_pixels", "total_max_pixels"):
        assert getattr(rules, name) == getattr(CONFIG, f"video_{name}")


def test_no_option_leads_to_more_pixels_than_a_video_may_have():
    rules = rules_of(min_pixels=1_000_000)
    assert rules.frame_size(1080, 1920, 500) == (768, 1376)
    with pytest.raises(RequestError, match="600 frames of at least 1000000 pixels"):
        rules.frame_size(1080, 1920, 600)
    many = rules_of(fps=100.0, max_frames=70_000)
    with pytest.raises(RequestError, match="70000 frames of at least 8192 pixels"):
        many.frame_size(1080, 1920, 70_000)
    assert rules_of(total_max_pixels=1000).frame_size(1080, 1920, 100) == (64, 96)


@given(
    st.integers(2, 300_000),
    st.floats(0.1, 240.0),
    st.floats(0.01, 100.0),
    st.integers(1, 64),
    st.integers(2, 4000),
)
def test_frames_are_even_in_number_and_spread_from_the_first_to_the_last(
    num_frames, source_fps, fps, min_frames, max_frames
):
    frames = sample(num_frames, source_fps, fps=fps, min_frames=min_frames, max_frames=max_frames)
    count = len(frames.indices)
    assert count % 2 == 0
    assert 2 <= count <= min(num_frames, max_frames)
    assert frames.indices[0] == 0
    assert frames.indices[-1] == num_frames - 1
    steps = np.diff(frames.indices)
    assert steps.min() >= 1
    assert np.ptp(steps) <= 1
    assert list(frames.timestamps) == sorted(frames.timestamps)
    if count < min(num_frames, max_frames) - 1:
        assert count >= min_frames
        assert count > num_frames / source_fps * fps - 2
