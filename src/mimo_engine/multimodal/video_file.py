"""A video file: what is in it, and its frames one after the other.

libav opens it, restricted: the file is read through Python, so nothing that it names (playlists,
references to other files or hosts) is followed, and only containers of the list below are tried.
Streams of these are all known from the start; with MPEG-TS, MPEG-PS, FLV and Ogg, where they may
appear later, PyAV reads past the end of an array.

Each pass over a file opens it anew, because decoding from the start is the one way to frame i that
gives the same frame for every codec and container.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.sources import opened

__all__ = ["RgbConverter", "VideoScan", "decode_frames", "has_audio_stream", "scan_video"]

# libav's names: mov is also mp4 and 3gp, matroska is also webm.
_OPTIONS = {"format_whitelist": "mov,matroska,avi,gif", "protocol_whitelist": "none"}
_READ_BYTES = 1 << 20
_MAX_THREADS = 4
"""Of one decoder; each holds a frame or two."""
_MIN_SHARE = 0.8
_SLACK_S = 1.0
"""A file that ends before this share of the duration that its header states, and more than the
slack too early, has been cut off."""
_MAX_FRAMES = 1 << 20
"""Of a file: ten hours. A still picture takes a few bytes a frame, and decoding it takes as long as
any."""
_MAX_FRAME_PIXELS = 8192 * 4352
"""The most that H.264, H.265, VP9 or AV1 allow at any level: decoders keep some twenty frames."""
_MAX_RATE_ERROR = 0.1
"""By which the stated rate may miss that of the packets' times. It is the encoder's, and cameras
and screen recorders drop frames."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoScan:
    """What the packets of a file say, undecoded."""

    num_frames: int
    """Frames to be shown; a damaged or unusual file may decode to another number."""
    fps: float
    """On average."""


def has_audio_stream(source: bytes | Path) -> bool:
    """Whether a video has sound. Raises RequestError for what is no video file."""
    with _opened(source) as container:
        return bool(container.streams.audio)


def scan_video(source: bytes | Path) -> VideoScan:
    """Read all packets. Raises RequestError for a file without pictures, or cut off."""
    with _opened(source) as container:
        stream = _video_stream(container)
        shown = _Shown()
        end_s, cut = 0.0, False
        for packet in container.demux():
            time = packet.dts if packet.pts is None else packet.pts
            if time is None and not packet.size:
                continue  # marks the end of a stream
            cut = packet.is_corrupt
            duration = packet.duration or 0
            if time is not None:
                end_s = max(end_s, float((time + duration) * (packet.time_base or 0)))
            if packet.stream is stream and packet.size and not packet.is_discard:
                shown.add(time, duration)
        start_s = (container.start_time or 0) / av.time_base
        stated_s = (container.duration or 0) / av.time_base
        if cut or end_s - start_s < min(_MIN_SHARE * stated_s, stated_s - _SLACK_S):
            raise RequestError("the video is incomplete, it ends too early: send the whole file")
        return VideoScan(num_frames=shown.num_frames, fps=_average_rate(stream, shown))


class _Shown:
    """Frames to be shown, counted, and from when to when, in units of their stream."""

    def __init__(self) -> None:
        self.num_frames = 0
        self._first = math.inf
        self._last = -math.inf
        self._last_duration = 0

    def add(self, time: int | None, duration: int) -> None:
        self.num_frames += 1
        if self.num_frames > _MAX_FRAMES:
            raise RequestError(f"the video has more than {_MAX_FRAMES} frames: send a part of it")
        if time is not None:
            self._first = min(self._first, time)
            if time > self._last:
                self._last, self._last_duration = time, duration

    @property
    def length(self) -> float:
        """Until the end of the last frame, which lasts as long as the others where it does not say.

        0 where that is unknown.
        """
        span = self._last - self._first
        if self.num_frames < 2 or not 0 < span < math.inf:
            return 0.0
        return span + (self._last_duration or span / (self.num_frames - 1))


def _average_rate(stream: VideoStream, shown: _Shown) -> float:
    """Frames for each second: as the file states, or as they are shown where that differs."""
    length_s = shown.length * float(stream.time_base or 0)
    measured = shown.num_frames / length_s if length_s else 0.0
    stated = float(stream.average_rate or 0)
    if stated and (not measured or abs(measured / stated - 1) <= _MAX_RATE_ERROR):
        return stated
    if not measured:
        raise RequestError("the video does not say when its frames are shown: save it again")
    return measured


def decode_frames(source: bytes | Path, limits: MediaLimits) -> Iterator[VideoFrame]:
    """All frames in the order in which they are shown, a few alive at a time.

    Raises RequestError, also in the middle, where the file is damaged.
    """
    with _opened(source) as container:
        stream = _video_stream(container)
        codec = stream.codec_context
        max_pixels = min(int(limits.max_image_megapixels * 1e6), _MAX_FRAME_PIXELS)
        if codec.width * codec.height > max_pixels:
            raise RequestError(
                f"the video has frames of {codec.width} x {codec.height} pixels, more than "
                f"{max_pixels / 1e6:g} megapixels: send a smaller one"
            )
        # The decoder finds out about frames that are larger than the container says.
        codec.options = {"max_pixels": str(max_pixels)}
        codec.thread_type = "AUTO"
        codec.thread_count = min(_MAX_THREADS, os.cpu_count() or 1)
        yield from container.decode(stream)


class RgbConverter:
    """Decoded frames to uint8 [height, width, 3], RGB, by the colour space that the frame names.

    turns: apply the rotation that phones store beside the frames.
    """

    def __init__(self, *, turns: bool) -> None:
        self._turns = turns
        self._reformatter = VideoReformatter()

    def convert(self, frame: VideoFrame) -> np.ndarray:
        picture = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
        if self._turns and frame.rotation % 90 == 0:
            # Both count counter-clockwise.
            picture = np.rot90(picture, frame.rotation // 90)
        return picture


@contextmanager
def _opened(source: bytes | Path) -> Iterator[InputContainer]:
    """The open file. Turns the errors of libav, in the body too, into RequestError."""
    with opened(source, "video") as file:
        try:
            container = av.open(
                file, "r", options=_OPTIONS, metadata_errors="replace", buffer_size=_READ_BYTES
            )
        except FFmpegError as error:
            raise RequestError(
                "the video is not an mp4, mov, 3gp, webm, mkv, avi or gif file, or its beginning "
                "or end is missing: send it whole, in one of these formats"
            ) from error
        with container:
            try:
                yield container
            except FFmpegError as error:
                raise RequestError(
                    f"the video cannot be decoded, it is damaged ({error.strerror}): save it again"
                ) from error


def _video_stream(container: InputContainer) -> VideoStream:
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.disposition & Disposition.attached_pic:
        raise RequestError("the file has no video: send sound as audio, a picture as an image")
    if stream.codec_context is None:
        raise RequestError("the video is compressed in an unknown way: send it as H.264 or VP9")
    return stream
