"""Layouts of the fact sheets (vision.md 8.5, audio.md 10.1 and 10.2), and what they leave open."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from media_config import processor_config
from mimo_engine.multimodal.interleave import (
    audio_layout,
    deal_audio,
    image_layout,
    timestamp_text,
    video_layout,
)

CONFIG = processor_config()


def encode(text: str) -> list[int]:
    """One id a character, as Qwen2's digits and colon have."""
    return [{":": 25}.get(char) or 15 + int(char) for char in text]


def times(indices: list[int], fps: float) -> list[float]:
    return [float(np.float32(index / fps)) for index in indices]


TEN_S_AT_30 = times([0, 33, 66, 99, 132, 166, 199, 232, 265, 299], 30)
TEN_S_AT_25 = times([0, 27, 55, 83, 110, 138, 166, 193, 221, 249], 25)
TWO_S_AT_30 = times([0, 8, 16, 25, 33, 42, 50, 59], 30)


def test_an_image_is_its_pads_between_two_marks():
    layout = image_layout(CONFIG, 3)
    assert layout.token_ids == [151652, 151655, 151655, 151655, 151653]
    assert [tuple(span.__reduce__()[1]) for span in layout.vision] == [(1, 3, 0)]


def test_a_second_of_sound_is_seven_pads_between_two_marks():
    layout = audio_layout(CONFIG, 7)
    assert layout.token_ids == [151673, *[151669] * 7, 151674]
    assert (layout.audio[0].start, layout.audio[0].num_tokens, layout.audio[0].first_row) == (
        1,
        7,
        0,
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.99, "00:00"),
        (59.99, "00:59"),
        (60, "01:00"),
        (61.5, "01:01"),
        (599, "09:59"),
        (3599.9, "59:59"),
        (6000, "100:00"),
    ],
)
def test_a_time_is_minutes_and_seconds_rounded_down(seconds, text):
    assert timestamp_text(seconds) == text


def test_a_silent_video_of_ten_seconds():
    layout = video_layout(CONFIG, encode, TEN_S_AT_30, 880)
    assert len(layout.token_ids) == 4437
    assert layout.token_ids[:7] == [151670, 15, 15, 25, 15, 15, 151652]
    assert layout.token_ids[-2:] == [151653, 151671]
    assert [span.first_row for span in layout.vision] == [0, 880, 1760, 2640, 3520]
    assert all(span.num_tokens == 880 for span in layout.vision)
    for span in layout.vision:
        pads = layout.token_ids[span.start : span.start + span.num_tokens]
        assert pads == [151656] * 880
    shown = [layout.token_ids[span.start - 6 : span.start - 1] for span in layout.vision]
    assert shown == [encode(f"00:0{s}") for s in (0, 2, 4, 6, 8)]
    assert not layout.audio


@pytest.mark.parametrize(
    ("num_audio", "lengths", "total"),
    [
        (63, [13, 14, 14, 14, 8], 4510),
        (57, [13, 14, 14, 14, 2], 4504),
        (76, [13, 14, 14, 14, 14], 4516),
        # Five seconds of sound: upstream answers with HTTP 500.
        (32, [13, 14, 5], 4437 + 3 * 2 + 32),
    ],
)
def test_sound_of_any_length_under_ten_seconds_of_video(num_audio, lengths, total):
    layout = video_layout(CONFIG, encode, TEN_S_AT_30, 880, num_audio)
    assert [span.num_tokens for span in layout.audio] == lengths
    assert [span.first_row for span in layout.audio] == [0, 13, 27, 41, 55][: len(lengths)]
    assert len(layout.token_ids) == total


@pytest.mark.parametrize(
    ("num_audio", "dealt"),
    [
        (63, [(0, 13), (13, 14), (27, 14), (41, 14), (55, 8)]),
        (76, [(0, 13), (13, 14), (27, 14), (41, 14), (55, 14)]),
        (26, [(0, 13), (13, 13), (27, 0), (41, 0), (55, 0)]),
    ],
)
def test_rows_of_sound_are_dealt_by_time_at_25_frames_a_second(num_audio, dealt):
    assert deal_audio(CONFIG, TEN_S_AT_25, num_audio) == dealt


def test_a_video_of_two_seconds_with_its_sound():
    assert deal_audio(CONFIG, TWO_S_AT_30, 13) == [(0, 3), (3, 3), (6, 4), (10, 3)]
    layout = video_layout(CONFIG, encode, TWO_S_AT_30, 300, 13)
    assert len(layout.token_ids) == 1251
    assert len(video_layout(CONFIG, encode, TWO_S_AT_30, 300).token_ids) == 1230


def test_frames_of_a_caller_at_whole_seconds():
    layout = video_layout(CONFIG, encode, [0.0, 1.0, 2.0, 2.0], 9)
    shown = [layout.token_ids[span.start - 6 : span.start - 1] for span in layout.vision]
    assert shown == [encode("00:00"), encode("00:02")]


def test_a_step_without_sound_may_show_an_empty_pair_of_marks():
    config = replace(CONFIG, video_step_without_audio="empty_span")
    layout = video_layout(config, encode, TEN_S_AT_25, 4, 26)
    assert [span.num_tokens for span in layout.audio] == [13, 13]
    assert sum(token == 151673 for token in layout.token_ids) == 5
    assert layout.token_ids[-3:] == [151673, 151674, 151671]


def test_one_group_has_one_time_and_one_run_of_sound():
    config = replace(CONFIG, interleave_s=-1.0)
    layout = video_layout(config, encode, TEN_S_AT_25, 4, 63)
    assert [(s.num_tokens, s.first_row) for s in layout.audio] == [(63, 0)]
    assert layout.token_ids[1:6] == encode("00:00")
    assert len(layout.token_ids) == 2 + 5 + 5 * 6 + 65


def test_groups_of_seconds_show_the_time_of_their_first_step():
    config = replace(CONFIG, interleave_s=5.0)
    layout = video_layout(config, encode, TEN_S_AT_25, 4, 63)
    # Steps at 0, 2.2 and 4.4 s, then those at 6.64 and 8.84 s.
    assert [(s.num_tokens, s.first_row) for s in layout.audio] == [(41, 0), (22, 41)]
    assert len(layout.token_ids) == 2 + 2 * 5 + 5 * 6 + 2 * 2 + 63


@given(
    st.lists(st.floats(0, 5000, width=32), min_size=2, max_size=40),
    st.integers(0, 40_000),
    st.sampled_from([0.0, -1.0, 3.0]),
)
def test_every_row_has_at_most_one_place_and_they_rise(frame_times, num_audio, interleave_s):
    frame_times = sorted(frame_times)[: len(frame_times) // 2 * 2]
    config = replace(CONFIG, interleave_s=interleave_s)
    layout = video_layout(config, encode, frame_times, 2, num_audio)
    for spans, pad in ((layout.vision, 151656), (layout.audio, 151669)):
        next_row, next_start = 0, 0
        for span in spans:
            assert span.num_tokens > 0
            assert span.first_row >= next_row
            assert span.start > next_start
            next_row, next_start = span.first_row + span.num_tokens, span.start + span.num_tokens
            assert layout.token_ids[span.start : next_start] == [pad] * span.num_tokens
        assert sum(token == pad for token in layout.token_ids) == sum(s.num_tokens for s in spans)
    assert not layout.audio or layout.audio[-1].first_row + layout.audio[-1].num_tokens <= num_audio
