"""Content parts: their forms, their options, and what is refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.chat.template import normalise_messages
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.inputs import (
    AudioInput,
    ImageInput,
    VideoAudioInput,
    VideoInput,
    VideoOptions,
    read_input,
)
from mimo_engine.multimodal.sources import EncodedSource, ObjectSource, UrlSource

WHERE = "messages[0].content[1]"
URL = "https://a.example/b"
SOURCE = UrlSource(url=URL)
HUGE = pytest.param(10**5000, id="huge")  # more digits than Python prints
FORMS = {
    "image": ["image_url", "image"],
    "video": ["video_url", "video"],
    "audio": ["audio_url", "audio"],
}
INPUTS = {"image": ImageInput, "video": VideoInput, "audio": AudioInput}


def refusal(part):
    with pytest.raises(RequestError) as caught:
        read_input(part, WHERE)
    where, _, message = str(caught.value).partition(": ")
    assert caught.value.param == where
    assert where.startswith(WHERE)
    return where[len(WHERE) :], message


def image(**options):
    return {"type": "image_url", "image_url": {"url": URL}, **options}


def video(**options):
    return {"type": "video_url", "video_url": {"url": URL}, **options}


@pytest.mark.parametrize("kind", FORMS)
def test_every_form_of_a_part_says_the_same(kind):
    for key in FORMS[kind]:
        for value in (URL, {"url": URL}):
            for form in FORMS[kind]:
                part = {"type": form, key: value}
                assert read_input(part, WHERE) == INPUTS[kind](source=SOURCE)
                assert read_input(part, WHERE).kind == kind


def test_input_audio_is_read_before_and_after_normalising():
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    expected = AudioInput(source=EncodedSource(text="AAAA"))
    assert read_input(part, WHERE) == expected
    normal = normalise_messages([{"role": "user", "content": [part]}])[0]["content"][0]
    assert normal["type"] == "audio"
    assert read_input(normal, WHERE) == expected


@pytest.mark.parametrize("data", ["data:audio/wav;base64,AAAA", URL])
def test_input_audio_may_hold_a_url(data):
    part = {"type": "input_audio", "input_audio": {"data": data}}
    assert read_input(part, WHERE) in (
        AudioInput(source=SOURCE),
        AudioInput(source=EncodedSource(text="AAAA")),
    )


def test_options_stand_within_or_beside_and_null_is_not_given():
    options = {
        "fps": 0.5,
        "max_frames": 64,
        "min_frames": 4,
        "min_pixels": 1000,
        "max_pixels": 2000,
        "total_max_pixels": 10**9,
        "use_audio": False,
    }
    rules = {name: value for name, value in options.items() if name != "use_audio"}
    expected = VideoInput(source=SOURCE, options=VideoOptions(**rules), use_audio=False)
    within = {"type": "video_url", "video_url": {"url": URL, **options}}
    assert read_input(within, WHERE) == expected
    assert read_input(video(**options), WHERE) == expected
    assert read_input({"type": "video", "video": URL, **options}, WHERE) == expected
    mixed = {"type": "video_url", "video_url": {"url": URL, "fps": 0.5}}
    assert (
        read_input(mixed | {name: options[name] for name in list(options)[1:]}, WHERE) == expected
    )
    nulls = dict.fromkeys([*options, "media_resolution", "whatever"])
    assert read_input(video(**nulls, audio=None), WHERE) == VideoInput(source=SOURCE)


def test_an_option_within_and_beside_is_refused():
    part = {"type": "video_url", "video_url": {"url": URL, "fps": 1}, "fps": 1}
    assert refusal(part) == (
        ".video_url",
        "'fps' is given twice, within video_url and beside it",
    )


@pytest.mark.parametrize(
    ("detail", "max_pixels", "expected"),
    [
        ("auto", None, None),
        ("high", None, None),
        ("high", 10**7, 10**7),
        ("low", None, 512 * 512),
        ("low", 10**7, 512 * 512),
        ("low", 1000, 1000),
    ],
)
def test_detail_low_is_a_limit_and_the_others_change_nothing(detail, max_pixels, expected):
    part = {"type": "image_url", "image_url": {"url": URL, "detail": detail}}
    assert read_input(part | {"max_pixels": max_pixels}, WHERE).max_pixels == expected


@pytest.mark.parametrize("resolution", ["default", "max"])
def test_media_resolution_is_the_checkpoints_own_either_way(resolution):
    assert read_input(video(media_resolution=resolution), WHERE) == VideoInput(source=SOURCE)


def test_a_video_that_must_have_sound_is_a_video_with_sound():
    own = read_input(video(use_audio=True), WHERE)
    assert own == VideoAudioInput(video=VideoInput(source=SOURCE, use_audio=True))
    assert own.kind == "video"


@pytest.mark.parametrize(
    "sound",
    [
        {"audio": "AAAA"},
        {"audio_url": {"url": "data:audio/wav;base64,AAAA"}},
        {"input_audio": {"data": "AAAA", "format": "mp3"}},
    ],
)
def test_sound_beside_a_video_takes_the_place_of_its_own(sound):
    assert read_input(video(fps=2, **sound), WHERE) == VideoAudioInput(
        video=VideoInput(source=SOURCE, options=VideoOptions(fps=2)),
        audio=AudioInput(source=EncodedSource(text="AAAA")),
    )


def test_sound_beside_a_video_is_checked_as_sound():
    assert refusal(video(audio=1))[1].startswith("audio: 1 is no audio")
    assert refusal(video(audio_url={}))[1] == "audio_url: url is missing"
    assert "not audio and audio_url" in refusal(video(audio="AAAA", audio_url="AAAA"))[1]
    for use_audio in (True, False):
        assert "leave one of them out" in refusal(video(audio="AAAA", use_audio=use_audio))[1]


def test_decoded_media_come_with_options_beside_them():
    frames = np.zeros((8, 32, 32, 3), np.uint8)
    part = {"type": "video", "video": {"frames": frames, "fps": 25}, "fps": 2}
    read = read_input(part, WHERE)
    assert (read.source.value, read.options.fps) == ((frames, 25), 2)
    wave = {"array": frames[0, 0, :, 0], "sampling_rate": 16000}
    assert isinstance(read_input({"type": "audio", "audio": wave}, WHERE).source, ObjectSource)


@pytest.mark.parametrize(
    ("part", "where", "error"),
    [
        ("abc", "", "must be an object, not 'abc'"),
        ({}, "", "the type is None; media are image, image_url"),
        ({"type": "text", "text": "a"}, "", "the type is 'text'"),
        ({"type": ["image"]}, "", "the type is a value of type list"),
        ({"type": "image_url"}, "", "a part of type image_url must have one of image, image_url"),
        ({"type": "image", "image": None}, "", "must have one of image, image_url"),
        ({"type": "image", "image": URL, "image_url": URL}, "", "not image and image_url"),
        ({"type": "audio", "audio": "A", "input_audio": {}}, "", "not audio and input_audio"),
        ({"type": "image_url", "image_url": {}}, ".image_url", "url is missing"),
        ({"type": "image", "image": {"url": None}}, ".image", "url is missing"),
        ({"type": "image_url", "image_url": {"url": {"url": URL}}}, ".image_url", "is no image"),
        ({"type": "input_audio", "input_audio": {"url": URL}}, ".input_audio", "data is missing"),
        ({"type": "image_url", "image_url": "ftp://a"}, ".image_url", "scheme 'ftp'"),
        (
            {"type": "audio_url", "audio_url": URL, "fps": 1},
            ".audio_url",
            "has no options, so 'fps'",
        ),
        (image(detail="original"), ".image_url", "choose one of auto, low, high"),
        (image(detail=["low"]), ".image_url", "detail is a value of type list"),
        (image(fps=1), ".image_url", "'fps' is no option of an image; it has detail, min_pixels"),
        (image(text="a"), ".image_url", "'text' is no option of an image"),
        (image(video=URL), ".image_url", "'video' is no option of an image"),
        (video(detail="low"), ".video_url", "'detail' is no option of a video"),
        (video(num_frames=8), ".video_url", "it has fps, max_frames, min_frames, min_pixels"),
        (video(max_tokens_per_frame=8), ".video_url", "'max_tokens_per_frame' is no option"),
        (video(media_resolution="low"), ".video_url", "choose one of default, max"),
        (video(use_audio=1), ".video_url", "use_audio must be true or false, not 1"),
        (video(use_audio="true"), ".video_url", "use_audio must be true or false"),
        (video(max_frames=1), ".video_url", "max_frames must be a whole number from 2 on, not 1"),
        (video(min_frames=9, max_frames=8), ".video_url", "min_frames is 9 and max_frames is 8"),
        (video(min_pixels=9, max_pixels=8), ".video_url", "min_pixels is 9 and max_pixels is 8"),
        (image(min_pixels=9, max_pixels=8), ".image_url", "no number is both"),
        (image(min_pixels=300_000, detail="low"), ".image_url", "no number is both"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(part, where, error):
    found, message = refusal(part)
    assert found == where
    assert error in message


@pytest.mark.parametrize(
    "name", ["min_pixels", "max_pixels", "total_max_pixels", "min_frames", "max_frames"]
)
@pytest.mark.parametrize("value", [0, -1, True, 2.0, "8", [8], 2**53 + 1, HUGE, float("inf")])
def test_a_count_is_a_whole_number_above_zero(name, value):
    _, message = refusal(video(**{name: value}))
    assert message.startswith(f"{name} must be a whole number from ")
    if name in ("min_pixels", "max_pixels"):
        assert refusal(image(**{name: value}))[1] == message


@pytest.mark.parametrize("fps", [0, -1, 0.0, True, "1", [1], float("nan"), float("inf"), HUGE])
def test_fps_is_a_positive_number(fps):
    assert refusal(video(fps=fps))[1].startswith("fps must be a positive number, not ")


@pytest.mark.parametrize("audio_format", ["wav", "mp3", "flac", "ogg", "m4a", "webm"])
def test_audio_formats_are_names_of_files(audio_format):
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": audio_format}}
    assert isinstance(read_input(part, WHERE), AudioInput)


def test_an_audio_format_without_a_header_is_refused():
    part = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "pcm16"}}
    assert "format is 'pcm16'; choose one of wav, mp3" in refusal(part)[1]
    part["input_audio"] = {"data": "AAAA", "rate": 16000}
    assert "'rate' is no option of input_audio; it has format" in refusal(part)[1]


NAMES = """
type url data format detail fps use_audio max_frames min_pixels max_pixels media_resolution array
frames sampling_rate image image_url video video_url audio audio_url input_audio
"""
TEXTS = """
image image_url video video_url audio input_audio low max wav http://a data: data:;base64,AAAA
file:///a /a /9j/ AAAA a: \ud800
"""
KEYS = st.sampled_from(NAMES.split()) | st.text(max_size=3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(TEXTS.split()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=5,
)
PARTS = st.dictionaries(KEYS, JSON, max_size=5)


@given(JSON | PARTS | st.tuples(PARTS, st.sampled_from(["image_url", "video_url", "audio"])))
def test_no_json_gets_anything_but_an_input_or_a_refusal(part):
    if isinstance(part, tuple):
        options, key = part
        part = {key: "AAAA", **options, "type": key}
    error = None
    try:
        read = read_input(part, WHERE)
    except RequestError as caught:
        error = caught
    if error is None:
        assert isinstance(read, ImageInput | VideoInput | AudioInput | VideoAudioInput)
    else:
        message = str(error)
        assert message.startswith(WHERE)
        assert len(message) < 600
        message.encode()
