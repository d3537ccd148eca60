"""Where one image, video or audio clip comes from: what a request says, told apart.

Strings are told apart by how they begin, never by what lies on the disk: the same request means the
same on every machine. Nothing is fetched, opened or decoded here (see fetch.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal
from urllib.parse import unquote_to_bytes, urlsplit

from mimo_engine.errors import RequestError

__all__ = [
    "BytesSource",
    "EncodedSource",
    "MediaKind",
    "ObjectSource",
    "PathSource",
    "Source",
    "UrlSource",
    "errors_at",
    "holds_object",
    "opened",
    "read_source",
    "shown",
]

MediaKind = Literal["image", "video", "audio"]


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlSource:
    """To be fetched."""

    url: str
    """Begins with http:// or https://; not looked at beyond that."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PathSource:
    """A file of the machine that serves."""

    path: Path
    """As given: it may be relative to the working directory, or begin with ~."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedSource:
    """Bytes as base64, not decoded yet: whoever decodes it knows how long it may be."""

    text: str


@dataclass(frozen=True, kw_only=True, slots=True)
class BytesSource:
    """An encoded file (PNG, MP4, WAV, ...) in memory."""

    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectSource:
    """Decoded media, from Python only.

    value: an image is a PIL image or an array. Audio is (array, samples per second), a video is
    (array or list of PIL images, frames per second). Shapes and types are checked where they are
    read.
    """

    value: Any


Source = UrlSource | PathSource | EncodedSource | BytesSource | ObjectSource

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_PATH_STARTS = ("/", "./", "../", "~")
# Base64 may begin with a slash too: that of JPEG files (FF D8 FF), and of MPEG and ADTS audio
# (FF Fx). As paths these are rare, and file:// is left to name them.
_BASE64_STARTS = ("/9j/", "//")
_DATA_URI_HEAD = re.compile(
    r"(?:[\w!#$&^.+-]+/[\w!#$&^.+-]+)?(?:;[\w!#$&^.+-]+=[^;,]*)*;base64", re.ASCII | re.IGNORECASE
)
_MAX_HEAD_LEN = 512

_OBJECT_FORMS = {
    "image": "a PIL image or an array",
    "audio": '(array, rate) or {"array": ..., "sampling_rate": ...}',
    "video": '(frames, fps) or {"frames": ..., "fps": ...}; frames: an array or PIL images',
}
_OBJECT_KEYS = {"audio": ("array", "sampling_rate"), "video": ("frames", "fps")}
_MAX_RATE = 10_000_000


def read_source(value: Any, kind: MediaKind) -> Source:
    """The source of one piece of media. RequestError names what is wrong with `value`."""
    if isinstance(value, str):
        return _read_text(value)
    if isinstance(value, os.PathLike):
        return PathSource(path=Path(value))
    if isinstance(value, bytes | bytearray | memoryview):
        return BytesSource(data=bytes(value))
    return ObjectSource(value=_read_object(value, kind))


def _read_text(text: str) -> Source:
    if text.startswith(_PATH_STARTS) and not text.startswith(_BASE64_STARTS):
        return PathSource(path=Path(text))
    match = _SCHEME.match(text)
    if match is None:
        return EncodedSource(text=text)
    scheme = match[1].lower()
    if scheme in ("http", "https"):
        return UrlSource(url=text)
    if scheme == "data":
        return _read_data_uri(text, match.end())
    if scheme == "file":
        return PathSource(path=_path_of_url(text))
    raise RequestError(f"URLs of the scheme {shown(scheme)} are not read: use http, https or data")


def _read_data_uri(text: str, begin: int) -> EncodedSource:
    comma = text.find(",", begin, begin + _MAX_HEAD_LEN)
    if comma < 0:
        raise RequestError("a data: URI must have a comma between its type and its data")
    if not _DATA_URI_HEAD.fullmatch(text, begin, comma):
        raise RequestError(
            f"a data: URI must begin like data:image/png;base64, and not {shown(text[:comma])}"
        )
    return EncodedSource(text=text[comma + 1 :])


def _path_of_url(url: str) -> Path:
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise RequestError(f"{shown(url)} is not a URL") from error
    if parts.netloc not in ("", "localhost"):
        raise RequestError(f"a file: URL of another host ({shown(parts.netloc)}) is not read")
    if parts.query or parts.fragment:
        raise RequestError("in a file: URL, write ? as %3F and # as %23")
    if not parts.path.startswith("/"):
        raise RequestError("a file: URL must hold an absolute path, as file:///a/b.png does")
    try:
        return Path(os.fsdecode(unquote_to_bytes(parts.path)))
    except ValueError as error:
        raise RequestError(f"{shown(url)} is no path of this machine") from error


def holds_object(value: Mapping[Any, Any], kind: MediaKind) -> bool:
    """Whether a mapping is decoded media itself, and not an object with a url."""
    return kind in _OBJECT_KEYS and _OBJECT_KEYS[kind][0] in value


def _read_object(value: Any, kind: MediaKind) -> Any:
    if kind == "image":
        if _is_array(value):
            return value
        raise _no_source(value, kind)
    data_key, rate_key = _OBJECT_KEYS[kind]
    if isinstance(value, Mapping):
        if set(value) != {data_key, rate_key}:
            raise RequestError(f"it must have the keys {data_key} and {rate_key}, and no other")
        value = (value[data_key], value[rate_key])
    if not (isinstance(value, tuple) and len(value) == 2):
        raise _no_source(value, kind)
    data, rate = value
    is_frames = kind == "video" and isinstance(data, list) and data and all(map(_is_array, data))
    if not (_is_array(data) or is_frames):
        raise _no_source(data, kind)
    is_number = isinstance(rate, int | float) and not isinstance(rate, bool)
    if not (is_number and 0 < rate <= _MAX_RATE):
        raise RequestError(f"{rate_key} must be a positive number, not {shown(rate)}")
    return data, rate


def _is_array(value: Any) -> bool:
    """A numpy array or a PIL image, known by what both offer: this file needs neither library.

    The type is asked, since a PIL image decodes its file when it is asked itself.
    """
    return hasattr(type(value), "__array_interface__")


def _no_source(value: Any, kind: MediaKind) -> RequestError:
    return RequestError(
        f"{shown(value)} is no {kind}: give a URL, a path, base64, or from Python also bytes or "
        f"{_OBJECT_FORMS[kind]}"
    )


@contextmanager
def errors_at(where: str) -> Iterator[None]:
    """Within, a RequestError begins with `where`, a place in the request, its `param` too."""
    try:
        yield
    except RequestError as error:
        raise RequestError(f"{where}: {error}", param=where) from error


@contextmanager
def opened(source: bytes | Path, kind: str) -> Iterator[BinaryIO]:
    """The content of a file in memory, or of the file at a path. Raises RequestError: no reading.

    Decoders are given an open file, never a name: they have no reason to open any themselves.
    """
    try:
        file = BytesIO(source) if isinstance(source, bytes) else source.open("rb")
    except OSError as error:
        raise RequestError(f"the {kind} cannot be read: {error.strerror}") from error
    with file:
        yield file


def shown(value: Any) -> str:
    """`value` for an error message: short, printable, whatever it is."""
    if isinstance(value, str):
        return repr(value) if len(value) <= 60 else f"{value[:60]!r}..."
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int) and abs(value) < 2**64:
        return repr(value)
    return f"a value of type {type(value).__name__}"
