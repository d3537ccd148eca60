"""Fetching what is not on the network: files under the media roots, base64, bytes and objects."""

import asyncio
import base64
import os
import ssl
from pathlib import Path

import pytest

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import ConfigError, RequestError
from mimo_engine.multimodal.fetch import MediaFetcher
from mimo_engine.multimodal.sources import (
    BytesSource,
    EncodedSource,
    ObjectSource,
    PathSource,
    read_source,
)

TLS = ssl.create_default_context()
WHERE = "messages[0].content[1].image_url"
MEBIBYTE = 2**20


def fetch(source, **limits):
    async def main():
        fetcher = MediaFetcher(MediaLimits(**limits), ssl_context=TLS)
        try:
            return await fetcher.fetch(source, WHERE)
        finally:
            await fetcher.close()

    return asyncio.run(main())


def refusal(source, **limits):
    with pytest.raises(RequestError) as caught:
        fetch(source, **limits)
    assert caught.value.param == WHERE
    prefix, _, message = str(caught.value).partition(": ")
    assert prefix == WHERE
    message.encode()
    return message


@pytest.fixture
def root(tmp_path):
    """A media root with a file, beside a file that is nobody's business."""
    (tmp_path / "root" / "sub").mkdir(parents=True)
    (tmp_path / "root" / "a.png").write_bytes(b"abc")
    (tmp_path / "secret").write_bytes(b"secret")
    return tmp_path / "root"


def refused_path(path, root, **limits):
    return refusal(PathSource(path=Path(path)), media_root=(str(root),), **limits)


def test_a_file_under_a_root_is_its_path(root):
    roots = (str(root / "sub"), str(root))
    for path in (root / "a.png", root / "sub" / ".." / "a.png", f"{root}//./a.png"):
        assert fetch(PathSource(path=Path(path)), media_root=roots) == root / "a.png"


def test_a_file_url_of_a_name_with_a_space_is_found(root):
    (root / "a b.png").write_bytes(b"abc")
    source = read_source(f"file://{root}/a%20b.png", "image")
    assert fetch(source, media_root=(str(root),)) == root / "a b.png"


def test_a_link_within_the_root_is_followed(root):
    (root / "link").symlink_to(root / "a.png")
    assert fetch(PathSource(path=root / "link"), media_root=(str(root),)) == root / "a.png"


def test_a_root_may_be_a_link_itself(root):
    (root.parent / "alias").symlink_to(root)
    source = PathSource(path=root.parent / "alias" / "a.png")
    assert fetch(source, media_root=(str(root.parent / "alias"),)) == root / "a.png"


def test_a_relative_path_is_one_of_the_working_directory(root, monkeypatch):
    monkeypatch.chdir(root)
    assert fetch(read_source("./a.png", "image"), media_root=(".",)) == root / "a.png"
    assert "under no directory" in refused_path("../secret", root)


def test_a_tilde_is_the_home_of_the_server(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root))
    assert fetch(read_source("~/a.png", "image"), media_root=("~",)) == root / "a.png"
    assert "under no directory" in refused_path("~nobody-of-this-name/a.png", root)


def test_without_a_root_no_path_is_read(root):
    assert "started with --media-root" in refusal(PathSource(path=root / "a.png"))


def test_what_lies_outside_is_refused_whether_it_exists_or_not(root):
    outside = root.parent
    (root / "file-link").symlink_to(outside / "secret")
    (root / "dir-link").symlink_to(outside)
    (outside / "root-of-others").mkdir()
    (outside / "root-of-others" / "x").write_bytes(b"x")
    (root / "loop").symlink_to(root / "loop")
    for path in (
        "/etc/passwd",
        "/nowhere",
        outside / "secret",
        outside / "missing",
        root / ".." / "secret",
        root / "sub" / ".." / ".." / "secret",
        root / "file-link",
        root / "dir-link" / "secret",
        root / "dir-link" / "missing",
        outside / "root-of-others" / "x",
        root / "loop",
        "/proc/self/root/etc/passwd",
        "\ud800",
    ):
        message = refused_path(path, root)
        assert message.endswith("is under no directory of --media-root")


def test_what_is_no_readable_file_is_refused(root):
    os.mkfifo(root / "fifo")
    (root / "empty").touch()
    for name, error in (
        ("missing", "does not exist"),
        ("a.png/below", "does not exist"),
        ("sub", "is not a regular file"),
        ("", "is not a regular file"),
        ("fifo", "is not a regular file"),
        ("empty", "it is empty"),
        ("a" * 300, "does not exist"),
    ):
        assert error in refused_path(root / name, root)
    assert "is not a regular file" in refused_path("/dev/zero", "/dev")
    assert "under no directory" in refused_path(f"{root}/a\0b", root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_the_server_may_not_read_is_refused(root):
    (root / "a.png").chmod(0)
    assert "may not be read" in refused_path(root / "a.png", root)


def test_a_file_of_the_largest_size_passes_and_one_byte_more_does_not(root):
    path = root / "large"
    path.write_bytes(bytes(MEBIBYTE))
    limits = {"media_root": (str(root),), "max_media_mib": 1}
    assert fetch(PathSource(path=path), **limits) == path
    path.write_bytes(bytes(MEBIBYTE + 1))
    assert refusal(PathSource(path=path), **limits) == "it has more than 1 MiB (--max-media-mib)"


@pytest.mark.parametrize("name", ["missing", "a.png"])
def test_a_root_that_is_no_directory_is_refused_at_start(root, name):
    with pytest.raises(ConfigError, match=f"--media-root .*{name} is not a directory"):
        MediaFetcher(MediaLimits(media_root=(str(root / name),)), ssl_context=TLS)


@pytest.mark.parametrize("num_bytes", [1, 2, 3, 100, 3 * 2**18, 3 * 2**18 + 1, 2 * MEBIBYTE])
def test_base64_is_decoded(num_bytes):
    data = os.urandom(num_bytes)
    text = base64.b64encode(data).decode()
    assert fetch(EncodedSource(text=text), max_media_mib=2) == data
    assert fetch(read_source(f"data:image/png;base64,{text}", "image"), max_media_mib=2) == data


PIECE = "A" * 2**20


@pytest.mark.parametrize(
    "text",
    [
        "A",
        "AA",
        "AAA",
        "AA=",
        "AAA=A",
        "AA==AAAA",
        "=",
        "====",
        "AAAA=",
        "AAAA====",
        "AAAA====AAAA",
        "AA==AA==",
        "AA A",
        "AAAA\n",
        "\nAAAA",
        "AA-_",
        "AAä=",
        "AAA\ud800",
        "cat.png",
        "a cat on a mat",
        "AAAA,BBBB",
        "AA%3D%3D",
        PIECE[:-2] + "==" + "AAAA",
        PIECE[:-1] + "=" + "AAAA",
        PIECE + "=",
        PIECE + "A",
        PIECE[:-1] + "\n" + "AAAA",
    ],
)
def test_what_is_no_strict_base64_is_refused_with_what_it_could_have_been(text):
    message = refusal(EncodedSource(text=text))
    assert "is neither a URL, nor a path (which begins with /, ./, ../, ~ or file://)" in message
    assert len(message) < 300


def test_base64_of_too_much_is_refused_undecoded():
    data = base64.b64encode(bytes(MEBIBYTE + 1)).decode()
    assert "more than 1 MiB" in refusal(EncodedSource(text=data), max_media_mib=1)
    assert "more than 1 MiB" in refusal(EncodedSource(text="!" * 2 * MEBIBYTE), max_media_mib=1)


def test_bytes_are_held_to_the_same_limits():
    assert fetch(BytesSource(data=b"abc")) == b"abc"
    assert refusal(BytesSource(data=b"")) == "it is empty"
    assert refusal(EncodedSource(text="")) == "it is empty"
    assert "more than 1 MiB" in refusal(BytesSource(data=bytes(MEBIBYTE + 1)), max_media_mib=1)


def test_an_object_passes_as_it_is():
    value = (object(), 16000)
    assert fetch(ObjectSource(value=value)) is value
