"""How fast sound becomes features on a CPU, and how much memory an hour of it takes.

    sound s/s   seconds of sound that one core decodes, resamples and transforms in a second: the
                best of some passes, in processor time, since others may share the machine
    stages      the same for each stage alone, of the last kind of file
    extra MB    the process's anonymous memory at its highest, over what it was before: what an
                hour takes beside the file and the features, which lie in shared memory

Features are compared with those of the whole signal at once first: fast and wrong is no result.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import av
import numpy as np

from mimo_engine.bench.media import RELEASED
from mimo_engine.bench.memory import with_peak_memory
from mimo_engine.bench.record import append_result
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.multimodal.audio import audio_features
from mimo_engine.multimodal.mel import log_mel
from mimo_engine.multimodal.resample import resample
from mimo_engine.multimodal.sound import file_blocks

__all__ = [
    "SOUNDS",
    "LongMeasurement",
    "Measurement",
    "Sound",
    "check",
    "main",
    "measure",
    "measure_long",
    "measure_stages",
]

NUM_PASSES = 3
LIMITS = MediaLimits(max_audio_s=7200)
_LIMIT_MB = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Sound:
    """A kind of file."""

    name: str
    codec: str
    container: str
    rate: int
    num_channels: int


SOUNDS = (
    Sound(name="WAV 16 kHz", codec="pcm_s16le", container="wav", rate=16_000, num_channels=1),
    Sound(name="MP3 44.1 kHz", codec="libmp3lame", container="mp3", rate=44_100, num_channels=2),
    Sound(name="Opus 48 kHz", codec="libopus", container="ogg", rate=48_000, num_channels=2),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One kind of work over `seconds` of sound."""

    what: str
    seconds: float
    sound_s_per_s: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LongMeasurement:
    """A long file, once."""

    what: str
    seconds: float
    sound_s_per_s: float
    file_mb: float
    features_mb: float
    extra_mb: float


def noise(seconds: float, rate: int, num_channels: int) -> np.ndarray:
    """float32 [channels, samples]: noise that swells four times a second, as syllables do."""
    num_samples = round(seconds * rate)
    envelope = 0.5 - 0.5 * np.cos(2 * np.pi * 4 * np.arange(num_samples) / rate)
    white = np.random.default_rng(0).standard_normal((num_channels, num_samples), np.float32)
    return (0.1 * envelope * white).astype(np.float32)


def encode(sound: Sound, samples: np.ndarray) -> bytes:
    """`samples` [channels, n] as a file of that kind, without a header that states its length."""
    buffer = BytesIO()
    options = {"write_xing": "0"} if sound.container == "mp3" else {}
    with av.open(buffer, "w", format=sound.container, options=options) as output:
        layout = {1: "mono", 2: "stereo"}[sound.num_channels]
        stream = output.add_stream(sound.codec, rate=sound.rate, layout=layout)
        assert isinstance(stream, av.AudioStream)
        context = stream.codec_context
        # Rates are equal: this is about the encoder's sample format and the size of its frames.
        converter = av.AudioResampler(
            context.format, context.layout, sound.rate, context.frame_size or 1024
        )
        for start in range(0, samples.shape[1], sound.rate):
            piece = np.ascontiguousarray(samples[:, start : start + sound.rate])
            frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
            frame.sample_rate, frame.pts = sound.rate, start
            frame.time_base = Fraction(1, sound.rate)
            for converted in converter.resample(frame):
                output.mux(stream.encode(converted))
        for converted in converter.resample(None):
            output.mux(stream.encode(converted))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def check(seconds: float = 65) -> None:
    """Every kind of file, in blocks and segments, against its samples in one piece."""
    for sound in SOUNDS:
        data = encode(sound, noise(seconds, sound.rate, sound.num_channels))
        samples = np.concatenate([block.samples for block in file_blocks(data)])
        whole = log_mel(resample(samples, sound.rate, RELEASED.sampling_rate), RELEASED)
        segments = audio_features(data, RELEASED, LIMITS).shared.arrays
        assert abs(len(samples) / sound.rate - seconds) < 0.1
        # In decoded samples some bands are nearly empty, and the logarithm magnifies rounding.
        energy_error = np.abs(np.exp(np.concatenate(segments)) - np.exp(whole)).max()
        assert energy_error < 1e-4, f"{sound.name}: off by {energy_error}"


def measure(sound: Sound, *, seconds: float) -> Measurement:
    """From file to features."""
    data = encode(sound, noise(seconds, sound.rate, sound.num_channels))
    return _timed(
        sound.name, seconds, lambda: audio_features(data, RELEASED, LIMITS).shared.close()
    )


def measure_stages(sound: Sound, *, seconds: float) -> Iterator[Measurement]:
    """Each stage of the above by itself."""
    samples = noise(seconds, sound.rate, sound.num_channels)
    data = encode(sound, samples)
    mono = samples.mean(axis=0)
    resampled = resample(mono, sound.rate, RELEASED.sampling_rate)
    yield _timed("  decode", seconds, lambda: sum(len(b.samples) for b in file_blocks(data)))
    yield _timed("  resample", seconds, lambda: resample(mono, sound.rate, RELEASED.sampling_rate))
    yield _timed("  log-mel", seconds, lambda: log_mel(resampled, RELEASED))


def _timed(what: str, seconds: float, work: Callable[[], object]) -> Measurement:
    times = []
    for _ in range(NUM_PASSES):
        start = process_time()
        work()
        times.append(process_time() - start)
    return Measurement(what=what, seconds=seconds, sound_s_per_s=round(seconds / min(times), 1))


def measure_long(sound: Sound, *, seconds: float, repeats: int) -> LongMeasurement:
    """`repeats` times `seconds` of a kind whose files may be joined end to end.

    From a file, in a process of its own: nothing that was allocated before can be used again.
    """
    data = encode(sound, noise(seconds, sound.rate, sound.num_channels)) * repeats
    context = multiprocessing.get_context("spawn")
    with TemporaryDirectory() as directory, ProcessPoolExecutor(1, mp_context=context) as pool:
        path = Path(directory) / "sound"
        path.write_bytes(data)
        measured = pool.submit(_long_cost, path, sound.name).result()
    assert abs(measured.seconds - seconds * repeats) < 0.1 * repeats
    return measured


def _long_cost(path: Path, what: str) -> LongMeasurement:
    start = process_time()
    features, peak_bytes = with_peak_memory(lambda: audio_features(path, RELEASED, LIMITS))
    taken_s = process_time() - start
    seconds = features.num_samples / RELEASED.sampling_rate
    return LongMeasurement(
        what=what,
        seconds=round(seconds, 1),
        sound_s_per_s=round(seconds / taken_s, 1),
        file_mb=round(path.stat().st_size / 1e6, 1),
        features_mb=round(features.shared.num_bytes / 1e6, 1),
        extra_mb=round(peak_bytes / 1e6, 1),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print two tables, append one JSON line. Fails when an hour takes too much memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=300, help="length of each file")
    parser.add_argument("--repeats", type=int, default=12, help="of one file, for a long one")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    check()
    rows = [measure(sound, seconds=options.seconds) for sound in SOUNDS]
    rows += measure_stages(SOUNDS[-1], seconds=options.seconds)
    print(f"{'file to features':<18}{'sound s/s':>10}")
    for row in rows:
        print(f"{row.what:<18}{row.sound_s_per_s:>10.0f}")
    mp3 = SOUNDS[1]
    long = measure_long(mp3, seconds=options.seconds, repeats=options.repeats)
    print(f"{'long file':<18}{'s':>10}{'sound s/s':>10}{'MB':>6}{'features MB':>12}{'extra MB':>9}")
    print(
        f"{long.what:<18}{long.seconds:>10.0f}{long.sound_s_per_s:>10.0f}{long.file_mb:>6.1f}"
        f"{long.features_mb:>12.1f}{long.extra_mb:>9.1f}"
    )
    assert long.extra_mb <= _LIMIT_MB, "a long sound takes too much memory"
    if not options.no_record:
        config = {"kinds": [asdict(sound) for sound in SOUNDS]}
        payload = {"config": config, "rows": [asdict(row) for row in rows], "long": asdict(long)}
        path = append_result("audio", payload)
        print(f"appended to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
