import math
import os
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_signals import lcg_noise
from media_config import processor_config
from media_files import make_audio, tone
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.audio import audio_features
from mimo_engine.multimodal.mel import log_mel
from mimo_engine.multimodal.resample import resample

CONFIG = processor_config()
LIMITS = MediaLimits()


def features_of(samples, rate=24_000, **options):
    return audio_features((samples, rate), CONFIG, LIMITS, **options)


def lengths_of(features):
    return [len(segment) for segment in features.shared.arrays]


def open_descriptors():
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize(
    ("seconds", "num_samples", "segments", "num_tokens"),
    [
        (1.0, 24_000, [101], 7),
        (7.3, 175_200, [731], 46),
        (30, 720_000, [3001], 188),
        (60, 1_440_000, [6000, 1], 376),
        (65, 1_560_000, [6000, 501], 407),
        (600, 14_400_000, [6000] * 10 + [1], 3751),
    ],
)
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_clips_have_the_lengths_of_the_sheet(rate, seconds, num_samples, segments, num_tokens):
    features = features_of(np.zeros(round(seconds * rate), np.int16), rate)
    assert features.num_samples == num_samples
    assert features.num_tokens == num_tokens
    assert lengths_of(features) == segments
    assert [spec.shape for spec in features.shared.specs] == [(n, 128) for n in segments]
    assert {spec.dtype for spec in features.shared.specs} == {"float32"}


@pytest.mark.parametrize(
    ("num_samples", "num_frames", "num_tokens"),
    [(481, 3, 1), (3_839, 16, 1), (3_840, 17, 2), (7_680, 33, 3)],
)
def test_lengths_at_the_edges_of_tokens(num_samples, num_frames, num_tokens):
    features = features_of(lcg_noise(num_samples))
    assert lengths_of(features) == [num_frames]
    assert (features.num_samples, features.num_tokens) == (num_samples, num_tokens)


@given(st.integers(481, 400_000))
def test_tokens_are_those_of_the_segments(num_samples):
    features = features_of(np.zeros(num_samples, np.float32))
    segments = lengths_of(features)
    assert sum(segments) == num_samples // 240 + 1
    assert features.num_tokens == num_samples // 3840 + 1
    assert features.num_tokens == sum(math.ceil(length / 16) for length in segments)


@given(
    num_samples=st.integers(481, 30_000),
    segment_frames=st.sampled_from([16, 32, 48, 112]),
    seed=st.integers(0, 50),
)
def test_segments_are_the_log_mels_cut_in_order(num_samples, segment_frames, seed):
    noise = lcg_noise(num_samples, seed)
    config = processor_config(segment_frames=segment_frames)
    features = audio_features((noise, 24_000), config, LIMITS)
    assert all(length == segment_frames for length in lengths_of(features)[:-1])
    np.testing.assert_array_equal(np.concatenate(features.shared.arrays), log_mel(noise, CONFIG))


def test_long_sound_is_read_in_blocks_and_equal_to_the_whole():
    noise = np.resize(lcg_noise(50_021), 44_100 * 7)
    features = features_of(noise, 44_100)
    expected = log_mel(resample(noise, 44_100, 24_000), CONFIG)
    np.testing.assert_allclose(features.shared.arrays[0], expected, rtol=0, atol=2e-4)


@pytest.mark.parametrize("num_channels", [2, 6, 8])
def test_channels_are_averaged_whichever_way_they_lie(num_channels):
    planes = np.stack([lcg_noise(4_800, seed) for seed in range(num_channels)])
    expected = log_mel(planes.mean(axis=0), CONFIG)
    for samples in (planes, planes.T, np.asfortranarray(planes)):
        np.testing.assert_array_equal(features_of(samples).shared.arrays[0], expected)


@pytest.mark.parametrize(
    ("dtype", "scale", "offset"),
    [("int16", 2**15, 0), ("int32", 2**31, 0), ("uint8", 128, 128)],
)
def test_integers_are_divided_by_full_scale(dtype, scale, offset):
    integers = (np.rint(5 * scale * lcg_noise(2_400)) + offset).astype(dtype)
    floats = ((integers.astype(np.float64) - offset) / scale).astype(np.float32)
    np.testing.assert_array_equal(
        features_of(integers).shared.arrays[0], features_of(floats).shared.arrays[0]
    )


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_other_widths_are_taken_as_they_are(dtype):
    floats = lcg_noise(2_400).astype(dtype)
    np.testing.assert_array_equal(
        features_of(floats).shared.arrays[0],
        features_of(floats.astype(np.float32)).shared.arrays[0],
    )


@pytest.mark.parametrize("num_samples", [0, 1, 10, 480])
def test_a_sound_that_is_too_short_is_refused(num_samples):
    for samples in (np.zeros(num_samples), np.zeros((2, num_samples))):
        with pytest.raises(RequestError, match="the least is 481"):
            features_of(samples)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 32_767.0, 1e300])
def test_samples_that_are_no_levels_are_refused(value):
    samples = np.zeros((2, 90_000))
    samples[1, 80_000] = value
    with pytest.raises(RequestError, match="NaN, infinite or over 1,024"):
        features_of(samples)


def test_infinities_of_opposite_sign_are_refused():
    samples = np.zeros((2, 5_000), np.float32)
    samples[:, 7] = np.inf, -np.inf
    with pytest.raises(RequestError, match="NaN, infinite"):
        features_of(samples)


@pytest.mark.parametrize("dtype", ["int64", "uint16", "complex64", "bool", "object"])
def test_other_types_of_samples_are_refused(dtype):
    with pytest.raises(RequestError, match=f"samples of type {dtype}: convert them"):
        features_of(np.zeros(2_400, dtype))


@pytest.mark.parametrize("shape", [(), (9, 9), (480, 640), (2, 2_400, 1)])
def test_shapes_that_are_no_sound_are_refused(shape):
    with pytest.raises(RequestError, match=r"is no sound: give \[samples\]"):
        features_of(np.zeros(shape, np.float32))


@pytest.mark.parametrize("rate", [1, 10, 999, 768_001])
def test_rates_that_no_sound_has_are_refused(rate):
    with pytest.raises(RequestError, match="1,000 to 768,000 Hz"):
        features_of(np.zeros(2_400), rate)


@pytest.mark.parametrize("rate", [0, -8_000, 8_000.5, math.nan, math.inf])
def test_a_rate_must_be_a_positive_whole_number(rate):
    with pytest.raises(RequestError, match="a sample rate must be a whole number"):
        features_of(np.zeros(2_400), rate)


def test_a_whole_rate_may_be_written_as_a_float():
    assert features_of(np.zeros(8_000), 8_000.0).num_samples == 24_000


def test_the_limit_includes_its_last_sample():
    limits = MediaLimits(max_audio_s=2)
    assert audio_features((np.zeros(16_000), 8_000), CONFIG, limits).num_samples == 48_000
    with pytest.raises(RequestError, match=r"longer than 2 s \(--max-audio-s\): send a shorter"):
        audio_features((np.zeros(16_001), 8_000), CONFIG, limits)


def test_decoding_stops_when_the_limit_is_passed():
    data = make_audio(lcg_noise(240_000), codec="flac", container="flac")
    broken = data[: 3 * len(data) // 4]
    with pytest.raises(RequestError, match=r"longer than 2 s"):
        audio_features(broken, CONFIG, MediaLimits(max_audio_s=2))
    with pytest.raises(RequestError, match=r"cannot be decoded"):
        audio_features(broken, CONFIG, LIMITS)


def test_memory_does_not_grow_with_the_sound():
    def peak_bytes(seconds):
        samples = np.zeros((2, 16_000 * seconds), np.int16)
        tracemalloc.start()
        audio_features((samples, 16_000), CONFIG, LIMITS).shared.close()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert peak_bytes(900) < 1.1 * peak_bytes(90)


def test_a_refused_sound_leaves_no_file_open(tmp_path):
    path = tmp_path / "sound.wav"
    path.write_bytes(make_audio(tone(2)))
    before = open_descriptors()
    for source in (path, path.read_bytes(), b"", (np.full(9_000, np.nan), 24_000)):
        with pytest.raises(RequestError):
            audio_features(source, CONFIG, MediaLimits(max_audio_s=1))
    assert open_descriptors() == before
