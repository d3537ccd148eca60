"""Pictures, videos and sounds for tests, made on the spot: no media file is kept in the repository.

Each function returns the bytes of a file. `numbered_frame` paints a number that survives lossy
codecs and resizing, and `number_in` reads it, so that a test can say which frame it was given.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from io import BytesIO
from itertools import pairwise

import av
import numpy as np
from PIL import Image

NUMBER_BITS = 12


def make_image(picture: Image.Image | np.ndarray, file_format: str = "PNG", **options) -> bytes:
    """`picture` as a file of `file_format`; `options` are those of Pillow's save."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> np.ndarray:
    """A picture [height, width, 3] without two equal corners."""
    y, x = np.mgrid[:height, :width]
    return np.stack([2 * x % 256, 3 * y % 256, (x + y) % 256], axis=-1).astype(np.uint8)


def numbered_frame(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """A frame [height, width, 3] that shows `number` as columns of black and white.

    Between black and white lies a row of grey blocks that moves with the number, so that no two
    frames are equal and codecs have motion to work on.
    """
    edges = np.arange(NUMBER_BITS + 1) * width // NUMBER_BITS
    frame = np.full((height, width, 3), 128, np.uint8)
    for bit, (left, right) in enumerate(pairwise(edges)):
        frame[: 3 * height // 4, left:right] = 255 * (number >> bit & 1)
    offset = 5 * number % width
    frame[3 * height // 4 :, offset : offset + width // 4] = 40
    return frame


def number_in(frame: np.ndarray) -> int:
    """The number that `numbered_frame` painted; frame: [height, width, channels], any size."""
    height, width = frame.shape[:2]
    edges = np.arange(NUMBER_BITS + 1) * width / NUMBER_BITS
    middles = ((edges[:-1] + edges[1:]) / 2).astype(int)
    rows = frame[height // 4 : height // 2, middles, 1].mean(axis=0)
    return sum(1 << bit for bit, value in enumerate(rows) if value > 127)


def make_video(
    frames: Iterable[np.ndarray],
    *,
    fps: float | Fraction = 30,
    codec: str = "libx264",
    container: str = "mp4",
    pixel_format: str = "yuv420p",
    times_s: Sequence[float] | None = None,
    rotation: int = 0,
    options: dict[str, str] | None = None,
    sound: np.ndarray | None = None,
    sound_rate: int = 24_000,
    sound_codec: str = "aac",
) -> bytes:
    """Frames [height, width, 3], all of one size, as a video.

    times_s: when each frame is shown, by default evenly at `fps`. rotation: degrees by which a
    player must turn the frames, counter-clockwise (the display matrix of phone videos). sound:
    float32 [channels, samples].
    """
    frames = list(frames)
    rate = Fraction(fps).limit_denominator(1001)
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = output.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixel_format
        if times_s is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        sound_stream = None
        if sound is not None:
            sound_stream = _add_sound(output, sound_codec, sound_rate, len(sound))
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            if times_s is None:
                frame.pts, frame.time_base = index, 1 / rate
            else:
                frame.pts, frame.time_base = round(1000 * times_s[index]), Fraction(1, 1000)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound_stream is not None:
            _write_sound(output, sound_stream, sound, sound_rate)
    return buffer.getvalue()


def make_audio(
    samples: np.ndarray,
    *,
    rate: int = 24_000,
    codec: str = "pcm_s16le",
    container: str = "wav",
    bit_rate: int | None = None,
) -> bytes:
    """Sound as a file. samples: float32 [channels, n] in -1 ... 1, or [n] for one channel.

    bit_rate: bits a second; None: the codec's own choice.
    """
    samples = np.atleast_2d(np.asarray(samples, np.float32))
    buffer = BytesIO()
    with av.open(buffer, "w", format=container) as output:
        stream = _add_sound(output, codec, rate, len(samples))
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        _write_sound(output, stream, samples, rate)
    return buffer.getvalue()


def tone(
    seconds: float, *, rate: int = 24_000, channels: int = 1, hertz: float = 440
) -> np.ndarray:
    """A sine [channels, samples]; each channel an octave above the one before."""
    time = np.arange(round(seconds * rate)) / rate
    waves = [np.sin(2 * np.pi * hertz * 2**channel * time) for channel in range(channels)]
    return (0.5 * np.stack(waves)).astype(np.float32)


def _add_sound(output, codec: str, rate: int, channels: int):
    layout = {1: "mono", 2: "stereo", 6: "5.1"}[channels]
    return output.add_stream(codec, rate=rate, layout=layout)


def _write_sound(output, stream, samples: np.ndarray, rate: int) -> None:
    """Encode in pieces; the encoder's own sample format is the resampler's business."""
    resampler = av.AudioResampler(
        stream.codec_context.format, stream.codec_context.layout, stream.codec_context.rate,
        frame_size=stream.codec_context.frame_size or 1024,
    )  # fmt: skip
    layout = stream.codec_context.layout
    for start in range(0, samples.shape[1], rate):
        piece = np.ascontiguousarray(samples[:, start : start + rate], np.float32)
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        for converted in resampler.resample(frame):
            output.mux(stream.encode(converted))
    for converted in resampler.resample(None):
        output.mux(stream.encode(converted))
    output.mux(stream.encode())
