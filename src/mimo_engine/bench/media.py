"""How fast pictures become features, and how much memory an hour of video takes.

    images/s    a JPEG or PNG file to features in the tower's dtype, best of some passes: decoding,
                resizing, normalising, patches. A second is one of processor time, since others may
                share the machine
    peak MB     anonymous and shared memory of a fresh process at its highest, while it turns an
                hour of 1080p video, one frame a second, into features: interpreter and all
    extra MB    of that, what is not features; more than the limit is no result

The pictures are waves under noise, which cost the decoders about what photographs do; the video's
frames are cheap to make.
"""

from __future__ import annotations

import argparse
import multiprocessing
import tempfile
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from time import perf_counter, process_time

import av
import numpy as np
from PIL import Image

from mimo_engine.bench.record import append_result
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.processor import CLIP_STATS, ProcessorConfig
from mimo_engine.multimodal.image import image_features
from mimo_engine.multimodal.inputs import VideoOptions
from mimo_engine.multimodal.video import video_features

__all__ = ["RELEASED", "ImageSpeed", "VideoCost", "main", "measure_image", "measure_video"]

IMAGE_SIZES = ((1280, 720), (1920, 1080))
IMAGE_FORMATS = ("JPEG", "PNG")
VIDEO_SIZE = (1920, 1080)
EXTRA_LIMIT_MB = 300
_SAMPLE_S = 0.002
_NUM_PASSES = 10

RELEASED = ProcessorConfig(
    patch_size=16,
    merge_size=2,
    temporal_patch_size=2,
    image_min_pixels=8192,
    image_max_pixels=8388608,
    video_min_pixels=8192,
    video_max_pixels=8388608,
    video_total_max_pixels=268435456,
    temporal_compression_ratio=1,
    fps=1.0,
    min_frames=8,
    max_frames=3600,
    interleave_s=0.0,
    sampling_rate=24000,
    num_mels=128,
    fft_size=960,
    hop=240,
    mel_fmin=0.0,
    mel_fmax=12000.0,
    segment_frames=6000,
    frames_per_token=16,
    image_mean=CLIP_STATS[0],
    image_std=CLIP_STATS[1],
    uses_hub_resize_rule=False,
    resize_filter="bilinear",
    image_alpha="white",
    exif_orientation="apply",
    video_step_without_audio="none",
    image_token_id=151655,
    video_token_id=151656,
    audio_token_id=151669,
    vision_start_token_id=151652,
    vision_end_token_id=151653,
    video_start_token_id=151670,
    video_end_token_id=151671,
    audio_start_token_id=151673,
    audio_end_token_id=151674,
)
"""processor_config of MiMo-V2.5."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSpeed:
    """One kind of picture."""

    file_format: str
    width: int
    height: int
    file_mb: float
    images_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class VideoCost:
    """One video in one dtype."""

    dtype: str
    num_frames: int
    seconds: float
    features_mb: float
    peak_mb: float
    extra_mb: float


def measure_image(
    file_format: str, width: int, height: int, *, num_passes: int = _NUM_PASSES
) -> ImageSpeed:
    data = _picture_file(file_format, width, height)
    best_s = np.inf
    for _ in range(num_passes):
        start = process_time()
        image_features(data, RELEASED, MediaLimits(), dtype="bfloat16").shared.close()
        best_s = min(best_s, process_time() - start)
    return ImageSpeed(
        file_format=file_format,
        width=width,
        height=height,
        file_mb=round(len(data) / 1e6, 3),
        images_per_s=round(1 / best_s, 1),
    )


def _picture_file(file_format: str, width: int, height: int) -> bytes:
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x / period) + np.cos((x + 2 * y) / (3 * period)) for period in (37, 61, 90)]
    noise = np.random.default_rng(0).normal(0, 8, (height, width, 3))
    pixels = np.clip(128 + 50 * np.stack(waves, axis=-1) + noise, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def measure_video(path: Path, dtype: str) -> VideoCost:
    """In a process of its own, so that nothing from before counts."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_video_cost, path, dtype).result()


def _video_cost(path: Path, dtype: str) -> VideoCost:
    peak_bytes, done = 0, threading.Event()

    def watch() -> None:
        nonlocal peak_bytes
        while not done.wait(_SAMPLE_S):
            peak_bytes = max(peak_bytes, _own_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = perf_counter()
    try:
        features = video_features(path, RELEASED, MediaLimits(), VideoOptions(), dtype=dtype)
        seconds = perf_counter() - start
    finally:
        done.set()
        watcher.join()
    peak_bytes = max(peak_bytes, _own_bytes())
    features_bytes = features.shared.num_bytes
    return VideoCost(
        dtype=dtype,
        num_frames=len(features.timestamps),
        seconds=round(seconds, 1),
        features_mb=round(features_bytes / 1e6, 1),
        peak_mb=round(peak_bytes / 1e6, 1),
        extra_mb=round((peak_bytes - features_bytes) / 1e6, 1),
    )


def _own_bytes() -> int:
    """Memory that no file backs: anonymous and shared."""
    total = 0
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(("RssAnon:", "RssShmem:")):
            total += int(line.split()[1]) * 1024
    return total


def write_video(path: Path, num_frames: int, width: int, height: int) -> None:
    """One frame a second; a bar moves over a gradient."""
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[:] = np.linspace(0, 255, width, dtype=np.uint8)[:, None]
    with av.open(path, "w") as output:
        stream = output.add_stream("libx264", rate=1, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(num_frames):
            left = 16 * index % (width - 16)
            bar = pixels[:, left : left + 16].copy()
            pixels[:, left : left + 16] = (255, 40, 40)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            pixels[:, left : left + 16] = bar
            frame.pts, frame.time_base = index, Fraction(1)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Print two tables, append one JSON line. Fails when a video takes too much memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-frames", type=int, default=3600, help="of the video, one a second")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    images = [measure_image(kind, *size) for size in IMAGE_SIZES for kind in IMAGE_FORMATS]
    print(f"{'image':<8}{'size':>12}{'MB':>8}{'images/s':>10}")
    for row in images:
        size = f"{row.width}x{row.height}"
        print(f"{row.file_format:<8}{size:>12}{row.file_mb:>8.2f}{row.images_per_s:>10.1f}")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "video.mp4"
        write_video(path, options.num_frames, *VIDEO_SIZE)
        videos = [measure_video(path, dtype) for dtype in ("bfloat16", "float32")]
    print(f"{'video':<10}{'frames':>8}{'s':>8}{'features MB':>13}{'peak MB':>9}{'extra MB':>10}")
    for row in videos:
        print(
            f"{row.dtype:<10}{row.num_frames:>8}{row.seconds:>8.1f}{row.features_mb:>13.1f}"
            f"{row.peak_mb:>9.1f}{row.extra_mb:>10.1f}"
        )
    assert all(row.extra_mb <= EXTRA_LIMIT_MB for row in videos), "a video takes too much memory"
    if not options.no_record:
        config = {"video": f"{options.num_frames} s of 1080p at 1 fps", "images": "bfloat16"}
        payload = {"config": config, "images": images, "videos": videos}
        rows = {key: [asdict(row) for row in payload[key]] for key in ("images", "videos")}
        path = append_result("media", {"config": config, **rows})
        print(f"appended to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
