"""Videos of every kind become the planned frames and no others; bad files are refused."""

import io
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from fractions import Fraction

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from media_config import processor_config
from media_files import (
    gradient,
    make_audio,
    make_image,
    make_video,
    number_in,
    numbered_frame,
    tone,
)
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.image import image_features
from mimo_engine.multimodal.inputs import VideoOptions
from mimo_engine.multimodal.pixels import to_bfloat16
from mimo_engine.multimodal.video import video_features, video_frames_features
from mimo_engine.multimodal.video_file import has_audio_stream

CONFIG = processor_config()
AS_STORED = processor_config(exif_orientation="ignore")
LIMITS = MediaLimits()
VP9 = {
    "codec": "libvpx-vp9",
    "container": "webm",
    "options": {"deadline": "realtime", "cpu-used": "8"},
}
FULL_COLOUR = {"pixel_format": "yuv444p", "options": {"crf": "1"}}


def features(source, config=CONFIG, limits=LIMITS, dtype="float32", **options):
    return video_features(source, config, limits, VideoOptions(**options), dtype=dtype)


def frames_features(frames, config=CONFIG, limits=LIMITS, dtype="float32", *, fps, **options):
    rules = VideoOptions(**options)
    return video_frames_features(frames, config, limits, rules, dtype=dtype, fps=fps)


def pictures(result, config=CONFIG):
    """The frames that the features show, values 0 ... 255: [frames, height, width, 3]."""
    steps, height, width = result.grid
    rows = result.shared.arrays[0].astype(np.float32)
    patches = rows.reshape(steps, height // 2, width // 2, 2, 2, 3, 2, 16, 16)
    frames = patches.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5)
    frames = frames.reshape(2 * steps, 16 * height, 16 * width, 3)
    return 255 * (frames * np.array(config.image_std) + np.array(config.image_mean))


def numbers(result):
    return [number_in(frame) for frame in pictures(result)]


def numbered(count, width=96, height=64):
    return [numbered_frame(index, width, height) for index in range(count)]


@pytest.fixture(scope="module")
def ten_seconds():
    """300 frames at 30 fps, with the frames that refer to later ones that phones and sites use."""
    return make_video(numbered(300), options={"bf": "3", "g": "60"}, sound=tone(10))


def test_ten_seconds_show_the_planned_frames(ten_seconds):
    result = features(ten_seconds)
    assert result.grid == (5, 6, 8)
    assert numbers(result) == [0, 33, 66, 99, 132, 166, 199, 232, 265, 299]
    wanted = [0, 1.1, 2.2, 3.3, 4.4, 5.5333, 6.6333, 7.7333, 8.8333, 9.9667]
    assert result.timestamps == pytest.approx(wanted, abs=4e-5)
    assert result.shared.specs[0].shape == (5 * 6 * 8, 1536)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"fps": 0.5}, [0, 42, 85, 128, 170, 213, 256, 299]),
        ({"fps": 2.0, "max_frames": 4}, [0, 99, 199, 299]),
        ({"max_frames": 3}, [0, 299]),
        ({"fps": 0.1, "min_frames": 1}, [0, 299]),
        ({"fps": 1000.0, "max_frames": 300}, list(range(300))),
    ],
)
def test_options_choose_the_frames(ten_seconds, options, wanted):
    assert numbers(features(ten_seconds, **options)) == wanted


def test_options_choose_the_size(ten_seconds):
    assert features(ten_seconds, min_pixels=40_000).grid == (5, 12, 16)
    assert features(ten_seconds, max_pixels=2048).grid == (5, 2, 2)
    assert features(ten_seconds, min_pixels=1024, total_max_pixels=10_240).grid == (5, 2, 2)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "libx264", "options": {"bf": "0"}},
        {"codec": "libx264", "container": "mov", "options": {"bf": "3", "b-pyramid": "normal"}},
        {"codec": "libx264", "container": "matroska", "sound": tone(3, channels=2)},
        {"codec": "libx264", "options": {"flags": "+ildct+ilme", "x264-params": "tff=1"}},
        {"codec": "mpeg4", "container": "avi", "options": {"bf": "2"}},
        {"codec": "mpeg4", "container": "mp4"},
        {"codec": "libvpx", "container": "webm", "options": {"auto-alt-ref": "1"}},
        {"codec": "mjpeg", "container": "avi", "pixel_format": "yuvj420p"},
        {"codec": "gif", "container": "gif", "pixel_format": "rgb8"},
        {"codec": "libsvtav1", "options": {"preset": "12"}},
        {"codec": "libx265", "options": {"x265-params": "log-level=none"}},
        VP9,
    ],
    ids=lambda options: f"{options['codec']} {options.get('container', 'mp4')}",
)
def test_every_codec_gives_its_frames(options):
    data = make_video(numbered(90, 160, 96), **options)
    assert numbers(features(data)) == [0, 12, 25, 38, 50, 63, 76, 89]


def test_a_video_of_odd_sides_is_seen_whole():
    for options in (VP9, FULL_COLOUR):
        result = features(make_video(numbered(20, 97, 65), **options))
        assert result.grid == (4, 6, 8)
        assert numbers(result) == [0, 2, 5, 8, 10, 13, 16, 19]


def test_the_rate_is_rounded_as_in_the_fact_sheet():
    for count, wanted in ((299, 8), (300, 10)):
        data = make_video(numbered(count), fps=Fraction(30000, 1001))
        assert len(features(data).timestamps) == wanted


@pytest.mark.parametrize("options", [{"options": {"bf": "0"}}, VP9], ids=["mp4", "webm"])
def test_times_of_a_variable_rate_are_those_of_the_average(options):
    """40 frames over 15.2 s, faster and faster: 2.63 a second, whatever the encoder was told."""
    times = [15.21 - 0.01 * (39 - index) ** 2 for index in range(40)]
    result = features(make_video(numbered(40), times_s=times, fps=30, **options))
    indices = [0, 3, 6, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39]
    assert numbers(result) == indices
    assert result.timestamps[-1] == pytest.approx(15.2 * 39 / 40, rel=0.03)


@pytest.mark.parametrize(("degrees", "edge"), [(90, "left"), (180, "bottom"), (-90, "right")])
def test_a_video_is_turned_as_phones_ask_for(degrees, edge):
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[:16] = 255
    data = make_video([frame] * 8, rotation=degrees)
    result = features(data)
    assert result.grid[1:] == ((6, 8) if degrees == 180 else (8, 6))
    seen = pictures(result)[0]
    edges = {"top": seen[4], "bottom": seen[-5], "left": seen[:, 4], "right": seen[:, -5]}
    for name, values in edges.items():
        assert (np.median(values) > 200) == (name == edge)
    stored = features(data, AS_STORED)
    assert stored.grid[1:] == (6, 8)
    assert np.median(pictures(stored)[0][4]) > 200


def tagged_709(colour):
    """A video in the colour space of HD, which differs from the default, and says so."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        stream.codec_context.colorspace = 1
        for index in range(8):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), colour, np.uint8))
            frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709")
            frame.colorspace, frame.pts, frame.time_base = 1, index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return buffer.getvalue()


@pytest.mark.parametrize("colour", [(200, 30, 60), (20, 180, 40), (30, 60, 220)])
def test_colours_are_those_of_the_space_that_the_file_names(colour):
    for data in (tagged_709(colour), make_video([np.full((64, 96, 3), colour, np.uint8)] * 8)):
        assert abs(pictures(features(data)) - colour).max() < 5


def from_packet(data, first):
    """The video from packet `first` on, as matroska: a recording that was begun in the middle."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format="matroska") as output:
        stream = source.streams.video[0]
        copy = output.add_stream_from_template(stream)
        for index, packet in enumerate(source.demux(stream)):
            if packet.size and index >= first:
                packet.stream = copy
                output.mux(packet)
    return buffer.getvalue()


def test_frames_that_cannot_be_decoded_are_not_counted():
    whole = make_video(numbered(120), options={"g": "40", "bf": "0", "sc_threshold": "0"})
    assert numbers(features(from_packet(whole, 15))) == [40, 51, 62, 73, 85, 96, 107, 119]
    with pytest.raises(RequestError, match="the video has 0 frames"):
        features(from_packet(whole, 81))


@pytest.mark.parametrize("count", [2, 3, 5])
def test_a_short_video_is_seen_as_far_as_it_is_even(count):
    wanted = {2: [0, 1], 3: [0, 2], 5: [0, 1, 2, 4]}[count]
    for options in ({}, VP9, {"codec": "gif", "container": "gif", "pixel_format": "rgb8"}):
        assert numbers(features(make_video(numbered(count), **options))) == wanted


def test_a_single_frame_is_refused():
    for options in ({}, VP9, {"codec": "gif", "container": "gif", "pixel_format": "rgb8"}):
        with pytest.raises(RequestError, match="the video has 1 frame"):
            features(make_video(numbered(1), **options))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"this is a text, named video.mp4" * 100,
        make_image(gradient(64, 64)),
        make_image(gradient(64, 64), "JPEG"),
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n",
        b"ffconcat version 1.0\nfile /etc/hostname\n",
        make_audio(tone(1)),
        make_video(numbered(8), container="mpegts"),
    ],
    ids=lambda data: repr(data[:10]),
)
def test_what_is_no_video_of_the_list_is_refused(data):
    with pytest.raises(RequestError, match="not an mp4, mov, 3gp, webm, mkv, avi or gif file"):
        features(data)


def test_sound_without_pictures_is_refused():
    data = make_audio(tone(1), codec="aac", container="mp4")
    with pytest.raises(RequestError, match="no video: send sound as audio"):
        features(data)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.7])
@pytest.mark.parametrize(
    "options", [{}, {"container": "matroska"}, VP9], ids=["mp4", "mkv", "webm"]
)
def test_a_video_that_was_cut_off_is_refused(options, share):
    noise = np.random.default_rng(0).integers(0, 256, (60, 64, 96, 3), np.uint8)
    data = make_video(noise, fps=10, **options)
    with pytest.raises(RequestError, match=r"too early|or end is missing|damaged"):
        features(data[: int(share * len(data))])


@given(st.data())
def test_a_damaged_video_is_decoded_or_refused(data):
    kind = data.draw(st.sampled_from(["mp4", "matroska", "gif"]))
    content = bytearray(DAMAGED[kind])
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with suppress(RequestError):
        assert features(bytes(content), max_frames=4, max_pixels=1024).grid[0] in (1, 2)


DAMAGED = {
    "mp4": make_video(numbered(12), sound=tone(0.4)),
    "matroska": make_video(numbered(12), container="matroska", sound=tone(0.4)),
    "gif": make_video(numbered(12), codec="gif", container="gif", pixel_format="rgb8"),
}


def test_a_path_gives_what_its_content_gives(tmp_path, ten_seconds):
    path = tmp_path / "video.txt"
    path.write_bytes(ten_seconds)
    result, wanted = features(path, max_frames=8), features(ten_seconds, max_frames=8)
    np.testing.assert_array_equal(result.shared.arrays[0], wanted.shared.arrays[0])
    with pytest.raises(RequestError, match="cannot be read: No such file"):
        features(tmp_path / "nothing.mp4")


def test_frames_of_too_many_pixels_are_refused():
    data = make_video(numbered(4, 640, 480))
    with pytest.raises(RequestError, match=r"640 x 480 pixels, more than 0\.3 megapixels"):
        features(data, limits=MediaLimits(max_image_megapixels=0.3))


def test_bfloat16_features_are_the_rounded_float32_ones(ten_seconds):
    exact, rounded = features(ten_seconds), features(ten_seconds, dtype="bfloat16")
    assert rounded.shared.specs[0].dtype == "bfloat16"
    np.testing.assert_array_equal(rounded.shared.arrays[0], to_bfloat16(exact.shared.arrays[0]))


def test_threads_decode_side_by_side(ten_seconds):
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: features(ten_seconds).shared.content_hash(), range(6)))
    assert len(set(results)) == 1


def test_sound_in_a_video_is_noticed(ten_seconds):
    assert has_audio_stream(ten_seconds)
    assert has_audio_stream(make_audio(tone(1), codec="aac", container="mp4"))
    assert not has_audio_stream(make_video(numbered(4)))
    with pytest.raises(RequestError, match="not an mp4"):
        has_audio_stream(b"text")


def test_three_frames_of_a_caller_are_padded_to_four():
    result = frames_features(np.stack(numbered(3)), fps=1.0)
    assert result.timestamps == (0.0, 1.0, 2.0, 2.0)
    assert result.grid == (2, 6, 8)
    assert numbers(result) == [0, 1, 2, 2]


def test_frames_of_a_caller_may_be_pictures_at_a_rate():
    pixels = numbered(4)
    mixed = [Image.fromarray(pixels[0]), pixels[1], make_image(pixels[2]), pixels[3]]
    result = frames_features(mixed, fps=3.0)
    assert numbers(result) == [0, 1, 2, 3]
    assert result.timestamps == tuple(float(np.float32(i) / np.float32(3)) for i in range(4))


def test_a_single_frame_of_a_caller_is_seen_as_an_image_is():
    frame = gradient(160, 128)
    result = frames_features(frame[None], fps=1.0)
    assert result.grid == (1, 8, 10)
    assert result.timestamps == (0.0, 0.0)
    image = image_features(frame, CONFIG, LIMITS, dtype="float32")
    np.testing.assert_array_equal(result.shared.arrays[0], image.shared.arrays[0])


def test_frames_of_a_caller_share_the_pixels_of_a_video():
    frames = np.zeros((5, 480, 640, 3), np.uint8)
    assert frames_features(frames, fps=1.0).grid == (3, 30, 40)
    assert frames_features(frames, fps=1.0, total_max_pixels=100_000).grid == (3, 10, 14)
    assert frames_features(frames, fps=1.0, max_pixels=100_000).grid == (3, 16, 22)
    assert frames_features(frames, fps=1.0, min_pixels=500_000).grid == (3, 40, 52)


@pytest.mark.parametrize(
    ("frames", "options", "said"),
    [
        ([], {"fps": 1.0}, "no frames"),
        (np.zeros((0, 64, 64, 3), np.uint8), {"fps": 1.0}, "no frames"),
        (np.zeros((4, 64, 64, 3), np.float32), {"fps": 1.0}, "uint8"),
        (np.zeros((4, 3, 64, 64), np.uint8), {"fps": 1.0}, "uint8"),
        ([gradient(64, 64), gradient(64, 96)], {"fps": 1.0}, "frame 1 .* 64 x 96 .* 64 x 64"),
        (numbered(2), {"fps": 1.0, "max_pixels": 10**8}, "max_pixels is 100000000"),
        (np.zeros((2, 20, 20_000, 3), np.uint8), {"fps": 1.0}, "too thin"),
    ],
)
def test_frames_of_a_caller_that_make_no_video_are_refused(frames, options, said):
    with pytest.raises(RequestError, match=said):
        frames_features(frames, **options)
