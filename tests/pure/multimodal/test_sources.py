"""Telling URLs, paths, base64 and objects apart."""

import base64
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mimo_engine.errors import RequestError
from mimo_engine.multimodal.sources import (
    BytesSource,
    EncodedSource,
    ObjectSource,
    PathSource,
    UrlSource,
    read_source,
)

IMAGE = Image.new("RGB", (4, 4))
PICTURES = [IMAGE, IMAGE]
PIXELS = np.zeros((4, 4, 3), np.uint8)
FRAMES = np.zeros((2, 4, 4, 3), np.uint8)
WAVE = np.zeros(100, np.float32)
HUGE = 10**5000  # more digits than Python prints


def encoded(data):
    return base64.b64encode(data).decode()


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("http://a.example/b.png", UrlSource(url="http://a.example/b.png")),
        ("HTTPS://a.example", UrlSource(url="HTTPS://a.example")),
        ("/a/b.png", PathSource(path=Path("/a/b.png"))),
        ("/tmp/clip", PathSource(path=Path("/tmp/clip"))),
        ("/9/b.png", PathSource(path=Path("/9/b.png"))),
        ("./b.png", PathSource(path=Path("b.png"))),
        ("../b", PathSource(path=Path("../b"))),
        ("~/b", PathSource(path=Path("~/b"))),
        ("file:///a/b.png", PathSource(path=Path("/a/b.png"))),
        ("file:/a/b.png", PathSource(path=Path("/a/b.png"))),
        ("FILE://localhost/a%20%C3%BC%3F%23.png", PathSource(path=Path("/a ü?#.png"))),
        ("file:///9j/b", PathSource(path=Path("/9j/b"))),
        ("data:image/png;base64,AAAA", EncodedSource(text="AAAA")),
        ("Data:;BASE64,", EncodedSource(text="")),
        ("data:audio/mpeg;codecs=mp3;base64,AAAA", EncodedSource(text="AAAA")),
        ("data:image/svg+xml;charset=utf-8;base64,AA==", EncodedSource(text="AA==")),
        ("AAAA", EncodedSource(text="AAAA")),
        ("cat.png", EncodedSource(text="cat.png")),
        ("", EncodedSource(text="")),
    ],
)
def test_a_string_is_told_by_how_it_begins(text, source):
    assert read_source(text, "image") == source


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8\xff\xe0\0\x10JFIF",
        b"\xff\xd8\xff\xdb\0",
        b"\xff\xfb\x90\x64",
        b"\xff\xf3\x40\xc0",
        b"\xff\xf1\x50\x80",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\0\0\0\0WEBP",
        b"\0\0\0\x20ftypisom",
        b"OggS\0",
        b"fLaC",
        b"ID3\x04",
        b"\x1a\x45\xdf\xa3",
    ],
)
def test_the_base64_of_every_known_kind_of_file_is_no_path(data):
    assert read_source(encoded(data), "audio") == EncodedSource(text=encoded(data))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("ftp://a.example/b", "scheme 'ftp'"),
        ("javascript:alert(1)", "scheme 'javascript'"),
        ("C:\\b.png", "scheme 'c'"),
        ("file://other.example/b", "another host"),
        ("file:b.png", "an absolute path"),
        ("file:///a?b", "%3F"),
        ("file:///a#b", "%23"),
        ("file://[/a", "is not a URL"),
        ("file:///\ud800", "is no path of this machine"),
        ("data:image/png;base64", "comma"),
        ("data:" + "a" * 1000 + ",", "comma"),
        ("data:image/png,abc", "must begin like data:image/png;base64"),
        ("data:,abc", "must begin like"),
        ("data:image;base64,AAAA", "must begin like"),
        ("data:base64,AAAA", "must begin like"),
        ("data:image/png;base64;x=y,AAAA", "must begin like"),
        ("data:image/png;url=http://a.example;b;base64,AAAA", "must begin like"),
    ],
)
def test_a_string_that_nobody_serves_is_refused(text, error):
    with pytest.raises(RequestError, match=error) as caught:
        read_source(text, "image")
    str(caught.value).encode()


def test_python_has_bytes_paths_and_decoded_media():
    assert read_source(b"abc", "image") == BytesSource(data=b"abc")
    assert read_source(bytearray(b"abc"), "video") == BytesSource(data=b"abc")
    assert read_source(memoryview(b"abc"), "audio") == BytesSource(data=b"abc")
    assert read_source(Path("a/b"), "image") == PathSource(path=Path("a/b"))


@pytest.mark.parametrize(
    ("value", "kind", "held"),
    [
        (IMAGE, "image", IMAGE),
        (PIXELS, "image", PIXELS),
        ((WAVE, 16000), "audio", (WAVE, 16000)),
        ({"array": WAVE, "sampling_rate": 44100.0}, "audio", (WAVE, 44100.0)),
        ((FRAMES, 2), "video", (FRAMES, 2)),
        ((PICTURES, 0.5), "video", (PICTURES, 0.5)),
        ({"frames": FRAMES, "fps": 25}, "video", (FRAMES, 25)),
    ],
)
def test_decoded_media_are_held_as_they_are(value, kind, held):
    source = read_source(value, kind)
    assert isinstance(source, ObjectSource)
    if isinstance(held, tuple):
        assert source.value[0] is held[0]
        assert source.value[1] == held[1]
    else:
        assert source.value is held


def test_a_pil_image_is_not_decoded_by_looking_at_it(tmp_path):
    path = tmp_path / "a.bmp"
    Image.new("RGB", (64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-1000])
    with Image.open(path) as image:
        read_source(image, "image")
        with pytest.raises(OSError, match="truncated"):
            image.load()


@pytest.mark.parametrize(
    ("value", "kind", "error"),
    [
        (None, "image", "None is no image: give a URL"),
        (1, "image", "1 is no image"),
        pytest.param(HUGE, "image", "a value of type int is no image", id="huge"),
        ([1, 2], "image", "a value of type list is no image"),
        ([IMAGE], "image", "a value of type list is no image"),
        ((WAVE, 16000), "image", "a value of type tuple is no image"),
        (WAVE, "audio", r"is no audio: .* \(array, rate\)"),
        ((WAVE,), "audio", "is no audio"),
        (([0.0, 0.1], 16000), "audio", "a value of type list is no audio"),
        ((WAVE, 0), "audio", "sampling_rate must be a positive number, not 0"),
        ((WAVE, True), "audio", "sampling_rate must be a positive number, not True"),
        ((WAVE, float("nan")), "audio", "sampling_rate must be"),
        ((WAVE, "16000"), "audio", "sampling_rate must be"),
        ({"array": WAVE}, "audio", "the keys array and sampling_rate, and no other"),
        ({"array": WAVE, "sampling_rate": 1, "path": "a"}, "audio", "and no other"),
        ({"array": [0.0], "sampling_rate": 16000}, "audio", "is no audio"),
        (FRAMES, "video", r"is no video: .* \(frames, fps\)"),
        (([], 25), "video", "a value of type list is no video"),
        (([IMAGE, "a"], 25), "video", "is no video"),
        ((FRAMES, -1), "video", "fps must be a positive number, not -1"),
        ({"frames": "abc", "fps": 1}, "video", "'abc' is no video"),
    ],
)
def test_what_is_no_media_is_refused(value, kind, error):
    with pytest.raises(RequestError, match=error):
        read_source(value, kind)
