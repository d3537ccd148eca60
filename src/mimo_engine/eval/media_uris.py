"""Files in data URIs, arrays without any loss: a server must see what a model was trained on.

Pictures are PNG, sound is WAV of 32-bit floats, video is FFV1 in Matroska.
"""

from __future__ import annotations

import base64
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image

__all__ = ["data_uri", "png_uri", "video_uri", "wav_uri"]

_MAX_DENOMINATOR = 1001
"""Of frame rates: that of 29.97 and its like."""


def png_uri(picture: np.ndarray) -> str:
    """picture: uint8 [height, width, 3]."""
    buffer = BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return data_uri("image/png", buffer.getvalue())


def wav_uri(samples: np.ndarray, rate: int) -> str:
    """samples: float32 [n], one channel."""
    buffer = BytesIO()
    with av.open(buffer, "w", format="wav") as file:
        stream = file.add_stream("pcm_f32le", rate=rate, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples[None], format="flt", layout="mono")
        frame.sample_rate, frame.pts = rate, 0
        file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return data_uri("audio/wav", buffer.getvalue())


def video_uri(frames: np.ndarray, fps: float) -> str:
    """frames: uint8 [num_frames, height, width, 3], `fps` of them a second."""
    buffer = BytesIO()
    rate = Fraction(fps).limit_denominator(_MAX_DENOMINATOR)
    with av.open(buffer, "w", format="matroska") as file:
        stream = file.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        # The one RGB layout of 8 bits that FFV1 has: the fourth byte is not stored.
        stream.pix_fmt = "bgr0"
        for index, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = index, 1 / rate
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return data_uri("video/x-matroska", buffer.getvalue())


def data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
