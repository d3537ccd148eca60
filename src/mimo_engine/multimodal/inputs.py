"""What a request says about one image, video or audio clip: a content part, read and checked.

`read_input` takes the part forms of OpenAI's API and of the servers for this family (protocol.md
5.3), and the native ones of `LLM.chat`. What must hold: every option is known, in range and free of
contradiction, or a RequestError names the part and the option. An option that would be ignored is
refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, cast

from mimo_engine.errors import RequestError
from mimo_engine.multimodal.sources import (
    MediaKind,
    Source,
    errors_at,
    holds_object,
    read_source,
    shown,
)

__all__ = [
    "MEDIA_KINDS",
    "AudioInput",
    "ImageInput",
    "MediaInput",
    "VideoAudioInput",
    "VideoInput",
    "VideoOptions",
    "read_input",
]

# From here on a float is not exact any more; no real number of pixels or frames comes near.
_MAX_NUMBER = 2**53

LOW_DETAIL_PIXELS = 512 * 512
"""What `detail: low` means, as in OpenAI's API."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """One image. None: as the checkpoint says."""

    kind: ClassVar[MediaKind] = "image"
    """The type of a content part that templates show this input by."""

    source: Source
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Of the image that the model sees, both included."""

    def __post_init__(self) -> None:
        _check_count(self.min_pixels, "min_pixels")
        _check_count(self.max_pixels, "max_pixels")
        _check_order(self.min_pixels, self.max_pixels, "pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoOptions:
    """Which frames of a video are looked at, and how large. None: as the checkpoint says."""

    fps: float | None = None
    """Frames to look at for each second of the video."""
    max_frames: int | None = None
    """At least 2: the model sees frames in pairs."""
    min_frames: int | None = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    """Of each frame that the model sees, both included."""
    total_max_pixels: int | None = None
    """Of all steps of a video; the two frames of a step count once."""

    def __post_init__(self) -> None:
        _check_fps(self.fps)
        _check_count(self.max_frames, "max_frames", least=2)
        for name in ("min_frames", "min_pixels", "max_pixels", "total_max_pixels"):
            _check_count(getattr(self, name), name)
        _check_order(self.min_frames, self.max_frames, "frames")
        _check_order(self.min_pixels, self.max_pixels, "pixels")


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoInput:
    """One video."""

    kind: ClassVar[MediaKind] = "video"

    source: Source
    options: VideoOptions = field(default_factory=VideoOptions)
    use_audio: bool | None = None
    """None: the video's own sound goes with it if there is any. True: there must be. False: its
    pictures alone."""

    def __post_init__(self) -> None:
        if not isinstance(self.use_audio, bool | None):
            raise RequestError(f"use_audio must be true or false, not {shown(self.use_audio)}")


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioInput:
    """One audio clip. It has no options."""

    kind: ClassVar[MediaKind] = "audio"

    source: Source


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoAudioInput:
    """One video together with its sound, which must be there."""

    kind: ClassVar[MediaKind] = "video"

    video: VideoInput
    """Its use_audio is True when the sound is its own, and None when `audio` is given."""
    audio: AudioInput | None = None
    """The sound, when it comes from elsewhere: it begins with the video. None: the video's own."""

    def __post_init__(self) -> None:
        if self.audio is not None and self.video.use_audio is not None:
            raise RequestError(
                "use_audio is about the video's own sound, and audio beside a video takes its "
                "place: leave one of them out"
            )
        if self.audio is None and self.video.use_audio is not True:
            raise RequestError("a video with sound needs use_audio: true, or audio beside it")


MediaInput = ImageInput | VideoInput | AudioInput | VideoAudioInput

_KEYS: Mapping[MediaKind, Sequence[str]] = {
    "image": ("image", "image_url"),
    "video": ("video", "video_url"),
    "audio": ("audio", "audio_url", "input_audio"),
}
MEDIA_KINDS: Mapping[str, MediaKind] = {key: kind for kind, keys in _KEYS.items() for key in keys}
"""By the type of a message's part."""

_IMAGE_OPTIONS = ("detail", "min_pixels", "max_pixels")
_VIDEO_OPTIONS = (*(one.name for one in fields(VideoOptions)), "use_audio", "media_resolution")
_DETAILS = ("auto", "low", "high")
# The checkpoint's own limits are the most it was made for, so "max" asks for what "default" gives.
_MEDIA_RESOLUTIONS = ("default", "max")
# Of input_audio. A file says itself what it is; raw samples say nothing and are not taken.
_AUDIO_FORMATS = ("wav", "mp3", "flac", "ogg", "opus", "m4a", "mp4", "aac", "webm")


def read_input(part: Mapping[str, Any], where: str) -> MediaInput:
    """The input that a content part describes, before or after `normalise_messages`.

    where: the part's place in the request, such as messages[0].content[1]; RequestError begins with
    it. Options stand in the object with the url or beside it, in the part. null is not given.
    """
    with errors_at(where):
        kind = _kind(part)
        key = _only_key(part, _KEYS[kind], f"a part of type {part['type']}")
    with errors_at(f"{where}.{key}"):
        match kind:
            case "image":
                return _read_image(part, key)
            case "video":
                return _read_video(part, key)
            case "audio":
                return _read_audio(part, key)


def _kind(part: Any) -> MediaKind:
    if not isinstance(part, Mapping):
        raise RequestError(f"a content part must be an object, not {shown(part)}")
    name = part.get("type")
    if not isinstance(name, str) or name not in MEDIA_KINDS:
        raise RequestError(f"the type is {shown(name)}; media are {', '.join(MEDIA_KINDS)}")
    return MEDIA_KINDS[name]


def _only_key(part: Mapping[str, Any], keys: Sequence[str], what: str) -> str:
    given = [key for key in keys if part.get(key) is not None]
    if len(given) != 1:
        raise RequestError(
            f"{what} must have one of {', '.join(keys)}"
            + (f", not {' and '.join(given)}" if given else "")
        )
    return given[0]


def _read_image(part: Mapping[str, Any], key: str) -> ImageInput:
    value, options = _split(part, key, "image")
    _check_known(options, _IMAGE_OPTIONS, "an image")
    detail = _choice(options.pop("detail", "auto"), "detail", _DETAILS)
    max_pixels = options.pop("max_pixels", None)
    _check_count(max_pixels, "max_pixels")
    if detail == "low":
        max_pixels = min(LOW_DETAIL_PIXELS, max_pixels or LOW_DETAIL_PIXELS)
    return ImageInput(source=read_source(value, "image"), max_pixels=max_pixels, **options)


def _read_video(part: Mapping[str, Any], key: str) -> VideoInput | VideoAudioInput:
    sounds = [name for name in _KEYS["audio"] if part.get(name) is not None]
    value, options = _split(part, key, "video", apart=sounds)
    _check_known(options, _VIDEO_OPTIONS, "a video")
    _choice(options.pop("media_resolution", "default"), "media_resolution", _MEDIA_RESOLUTIONS)
    use_audio = options.pop("use_audio", None)
    video = VideoInput(
        source=read_source(value, "video"), options=VideoOptions(**options), use_audio=use_audio
    )
    if sounds:
        name = _only_key(part, sounds, "a video with sound from elsewhere")
        with errors_at(name):
            audio = _read_audio({name: part[name]}, name)
        return VideoAudioInput(video=video, audio=audio)
    return VideoAudioInput(video=video) if video.use_audio else video


def _read_audio(part: Mapping[str, Any], key: str) -> AudioInput:
    value, options = _split(part, key, "audio")
    if key == "input_audio":
        _check_known(options, ("format",), "input_audio")
        _choice(options.get("format", "wav"), "format", _AUDIO_FORMATS)
    elif options:
        raise RequestError(f"audio has no options, so {shown(next(iter(options)))} is refused")
    return AudioInput(source=read_source(value, "audio"))


def _split(
    part: Mapping[str, Any], key: str, kind: MediaKind, *, apart: Sequence[str] = ()
) -> tuple[Any, dict[str, Any]]:
    """What part[key] names, and the options within it and beside it.

    apart: keys of the part that are no options.
    """
    value = part[key]
    known = ("type", key, *apart)
    options = {name: own for name, own in part.items() if name not in known and own is not None}
    if not isinstance(value, Mapping) or holds_object(value, kind):
        return value, options
    within = {name: own for name, own in value.items() if own is not None}
    name = "data" if key == "input_audio" else "url"
    if name not in within:
        raise RequestError(f"{name} is missing")
    source = within.pop(name)
    for name in within:
        if name in options:
            raise RequestError(f"{shown(name)} is given twice, within {key} and beside it")
    return source, options | within


def _check_known(options: Mapping[str, Any], known: Sequence[str], what: str) -> None:
    for name in options:
        if name not in known:
            raise RequestError(f"{shown(name)} is no option of {what}; it has {', '.join(known)}")


def _choice(value: Any, name: str, choices: Sequence[str]) -> str:
    if value not in choices:
        raise RequestError(f"{name} is {shown(value)}; choose one of {', '.join(choices)}")
    return cast("str", value)


def _check_count(value: Any, name: str, *, least: int = 1) -> None:
    """None passes, as it does below."""
    is_count = isinstance(value, int) and not isinstance(value, bool)
    if value is not None and not (is_count and least <= value <= _MAX_NUMBER):
        raise RequestError(f"{name} must be a whole number from {least} on, not {shown(value)}")


def _check_fps(value: Any) -> None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if value is not None and not (is_number and 0 < value <= _MAX_NUMBER):
        raise RequestError(f"fps must be a positive number, not {shown(value)}")


def _check_order(least: int | None, most: int | None, what: str) -> None:
    if least is not None and most is not None and least > most:
        raise RequestError(f"min_{what} is {least} and max_{what} is {most}: no number is both")
