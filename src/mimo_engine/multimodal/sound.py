"""Sound from a file or an array to one channel: blocks of float32 at the rate of the recording.

FFmpeg takes containers and codecs apart (through PyAV); here its samples become floats in -1 ... 1
(audio.md 7) and its channels their mean. Nothing resamples: that is done later and in one way,
whatever the file was.

What is played is what FFmpeg decodes: it drops the delay and padding of an encoder where the file
states them. Times in the file have no say, neither a start other than zero nor gaps, as in the
software that the model is usually served with: the first sample decoded is the first of the sound.

A packet that cannot be decoded is an error, except in MP3 and ADTS, which have no container: tags
and padding lie among their frames, and are passed over as every player does. A file that was cut
off is an error too where it no longer makes sense (FLAC, M4A); WAV, MP3, ADTS and Ogg end there.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError

from mimo_engine.errors import RequestError
from mimo_engine.multimodal.sources import opened

__all__ = ["SoundBlock", "array_blocks", "file_blocks"]

_BLOCK_SAMPLES = 1 << 16
_MAX_CHANNELS = 8
"""7.1. In an array, more tells that its dimensions are swapped."""
_MAX_LEVEL = 1024.0
"""Times full scale. Recordings exceed it by a little, integers cast to float by far more."""
_FULL_SCALE = {"uint8": 128.0, "int16": 2.0**15, "int32": 2.0**31}
"""24 bits come as the upper ones of int32."""
_FLOATS = ("float16", "float32", "float64")
_TYPES = {"u8": "uint8", "s16": "int16", "s32": "int32", "flt": "float32", "dbl": "float64"}
"""Numpy's name of FFmpeg's sample formats, whose own name ends with p when planar."""

# FFmpeg also knows formats that name other files or addresses to be opened: none of these. Nor
# those made for broadcasting, where streams turn up midway, which PyAV does not expect.
_DEMUXERS = "aac,ac3,aiff,amr,asf,au,avi,caf,eac3,flac,matroska,mov,mp3,ogg,w64,wav,webm"
_BARE_STREAMS = ("mp3", "aac")
_USUAL_FORMATS = "WAV, MP3, FLAC, Ogg, M4A or WebM"


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundBlock:
    """A stretch of sound. The rate is that of the blocks before."""

    samples: np.ndarray
    """float32 [n], n > 0: the mean of the channels."""
    rate: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Layout:
    """How the samples of a decoded frame lie."""

    dtype: str
    num_channels: int
    is_planar: bool
    rate: int


def file_blocks(source: bytes | Path) -> Generator[SoundBlock]:
    """The first audio stream of a sound or video file. Raises RequestError.

    Close the iterator when it is left early.
    """
    with opened(source, "file") as file:
        try:
            with av.open(
                file,
                "r",
                metadata_errors="ignore",
                options={"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"},
            ) as container:
                yield from _joined(_frames(container))
        except (FFmpegError, IndexError) as error:
            # IndexError is PyAV's own: a packet of a stream that the file had not announced.
            reason = error.strerror if isinstance(error, FFmpegError) else "unannounced stream"
            raise RequestError(
                f"the sound cannot be decoded ({reason}): the file is damaged, cut off or of an "
                f"unknown format; send it whole, as {_USUAL_FORMATS}"
            ) from error


def array_blocks(samples: np.ndarray, rate: float) -> Generator[SoundBlock]:
    """An array [n], [channels, n] or [n, channels] of floats, uint8, int16 or int32.

    Raises RequestError.
    """
    if not (rate >= 1 and float(rate).is_integer()):
        raise RequestError(f"a sample rate must be a whole number of Hz, at least 1, not {rate}")
    planes = _planes(np.asarray(samples))
    for start in range(0, planes.shape[1], _BLOCK_SAMPLES):
        block = planes[:, start : start + _BLOCK_SAMPLES]
        yield SoundBlock(samples=_mono(block), rate=int(rate))


def _frames(container: InputContainer) -> Iterator[av.AudioFrame]:
    if not container.streams.audio:
        raise RequestError(f"the file has no sound: send one that has, as {_USUAL_FORMATS}")
    stream = container.streams.audio[0]
    passed_over = (FFmpegError,) if container.format.name in _BARE_STREAMS else ()
    with suppress(*passed_over):
        for packet in container.demux(stream):
            with suppress(*passed_over):
                yield from stream.decode(packet)


def _joined(frames: Iterator[av.AudioFrame]) -> Iterator[SoundBlock]:
    """Blocks of many frames: a frame is too short to be worth the calls that follow."""
    pieces: list[np.ndarray] = []
    layout: _Layout | None = None
    num_samples = 0
    for frame in frames:
        found = _layout_of(frame)
        if layout is not None and layout.rate != found.rate:
            raise RequestError(
                f"the sound changes its sample rate on the way, from {layout.rate:,} to "
                f"{found.rate:,} Hz: re-encode it at one rate"
            )
        if layout is not None and (layout != found or num_samples >= _BLOCK_SAMPLES):
            yield _block(pieces, layout)
            pieces, num_samples = [], 0
        layout = found
        pieces.append(_samples_of(frame, layout))
        num_samples += frame.samples
    if layout is not None:
        yield _block(pieces, layout)


def _layout_of(frame: av.AudioFrame) -> _Layout:
    name, num_channels = frame.format.name.removesuffix("p"), frame.layout.nb_channels
    if name not in _TYPES:
        raise RequestError(
            f"the sound has samples of the format {name}: re-encode it with 16, 24 or 32 bits, or "
            "as float"
        )
    if num_channels > _MAX_CHANNELS:
        raise RequestError(
            f"the sound has {num_channels} channels, and at most {_MAX_CHANNELS} are taken: mix it "
            "down to stereo or mono"
        )
    return _Layout(
        dtype=_TYPES[name],
        num_channels=num_channels,
        is_planar=frame.format.is_planar,
        rate=frame.sample_rate,
    )


def _samples_of(frame: av.AudioFrame, layout: _Layout) -> np.ndarray:
    """[channels, n], or [1, n * channels] when not planar.

    Not by PyAV's `to_ndarray`: it looks for the end of the list of planes in what lies behind it,
    and with 8 planes or more reads memory that is none of the frame's.
    """
    num_planes = layout.num_channels if layout.is_planar else 1
    count = frame.samples * layout.num_channels // num_planes
    planes = frame.planes[:num_planes]
    return np.stack([np.frombuffer(bytes(plane), layout.dtype, count) for plane in planes])


def _block(pieces: list[np.ndarray], layout: _Layout) -> SoundBlock:
    """pieces: as `_samples_of` gives them."""
    joined = np.concatenate(pieces, axis=1)
    planes = joined if layout.is_planar else joined.reshape(-1, layout.num_channels).T
    return SoundBlock(samples=_mono(planes), rate=layout.rate)


def _mono(planes: np.ndarray) -> np.ndarray:
    """float32 [n] of a type in `_FULL_SCALE` or `_FLOATS` [channels, n]. Raises RequestError.

    The mean is taken before resampling, which is linear: a second channel costs next to nothing.
    """
    kind = planes.dtype.name
    with np.errstate(over="ignore", invalid="ignore"):
        # Channel by channel in memory: the mean over interleaved samples takes ten times as long.
        floats = planes.astype(np.float32, order="C")
        if kind == "uint8":
            floats -= 128
        if kind in _FULL_SCALE:
            floats /= _FULL_SCALE[kind]
        mono = floats[0] if len(floats) == 1 else floats.mean(axis=0)
        # NaN compares as false.
        if not np.abs(mono).max() <= _MAX_LEVEL:
            raise RequestError(
                f"the sound has samples that are NaN, infinite or over {_MAX_LEVEL:,.0f}: as "
                "floats they lie in -1 ... 1, so mend them, or divide integers by full scale"
            )
    return mono


def _planes(samples: np.ndarray) -> np.ndarray:
    """[channels, n] of an array from outside. Raises RequestError."""
    if samples.dtype.name not in (*_FULL_SCALE, *_FLOATS):
        raise RequestError(
            f"samples of type {samples.dtype.name}: convert them to float32 in -1 ... 1, or to "
            "one of the PCM types uint8, int16 and int32"
        )
    if samples.ndim == 1:
        return samples[None]
    if samples.ndim == 2 and samples.shape[0] <= _MAX_CHANNELS:
        return samples
    if samples.ndim == 2 and samples.shape[1] <= _MAX_CHANNELS:
        return samples.T
    raise RequestError(
        f"an array of shape {samples.shape} is no sound: give [samples] or [channels, samples], "
        f"with at most {_MAX_CHANNELS} channels"
    )
