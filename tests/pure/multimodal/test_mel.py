import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_signals import lcg_noise
from media_config import processor_config
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.mel import LogMel, log_mel, mel_filterbank

CONFIG = processor_config()
SILENCE = math.log(1e-7)


def log_mel_as_written(samples):
    """audio.md 2.2 in fp64, all at once."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(960) / 960)
    padded = np.pad(samples.astype(np.float64), 480, mode="reflect")
    starts = range(0, len(padded) - 960 + 1, 240)
    frames = np.stack([padded[start : start + 960] * window for start in starts])
    return np.log(np.maximum(abs(np.fft.rfft(frames)) @ mel_filterbank(CONFIG), 1e-7))


def assert_mels(frame, expected):
    """expected: {mel: value} with five digits."""
    found = {mel: float(frame[mel]) for mel in expected}
    assert found == pytest.approx(expected, abs=2e-5)


def test_silence_is_the_floor_everywhere():
    frames = log_mel(np.zeros(2_400, np.float32), CONFIG)
    assert frames.dtype == np.float32
    assert frames.shape == (11, 128)
    assert float(frames.min()) == float(frames.max()) == pytest.approx(-16.118095, abs=1e-6)


def test_the_filterbank_is_that_of_the_sheet():
    filters = mel_filterbank(CONFIG)
    assert filters.shape == (481, 128)
    num_bins = (filters > 0).sum(axis=0)
    assert (num_bins.min(), num_bins.max()) == (1, 23)
    assert num_bins[:12].tolist() == [1, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2]
    assert filters.sum(dtype=np.float64) == pytest.approx(473.8479, abs=1e-4)
    # The sheet's values were computed in fp32: their last digits are off by one.
    assert filters[1, :2].tolist() == pytest.approx([0.4408790, 0.5591211], abs=2e-6)
    assert filters[40, 38:40].tolist() == pytest.approx([0.50965, 0.49035], abs=1e-5)
    assert np.flatnonzero(filters[40]).tolist() == [38, 39]


def test_an_impulse_gives_the_sums_of_the_filters():
    samples = np.zeros(2_400, np.float32)
    samples[1_200] = 1
    frames = log_mel(samples, CONFIG)
    expected = {0: -0.81898, 1: -0.58139, 2: -0.07266, 63: 0.99741, 127: 2.41164}
    assert_mels(frames[5], expected)
    np.testing.assert_allclose(frames[2:4], SILENCE, atol=1e-4)


def test_a_tone_has_the_mels_of_the_sheet():
    time = np.arange(24_000) / 24_000
    frames = log_mel((0.5 * np.sin(2 * np.pi * 440 * time)).astype(np.float32), CONFIG)
    assert frames.shape == (101, 128)
    assert frames[50].argmax() == 21
    expected = {21: 4.69016, 10: -3.43894, 19: 2.57158, 20: 4.44580, 22: 3.58110, 26: -1.47648}
    assert_mels(frames[50], {**expected, 28: -2.46861})


def test_noise_has_the_mels_of_the_sheet():
    noise = lcg_noise(24_000)
    assert float(noise[0]) == pytest.approx(-0.0527089, abs=1e-7)
    frames = log_mel(noise, CONFIG)
    assert float(frames.mean()) == pytest.approx(0.8835205, abs=1e-5)
    assert float(frames.std(ddof=1)) == pytest.approx(0.967839, abs=1e-5)
    middle = {0: -0.59999, 1: -0.36239, 2: -1.17809, 3: -0.96006, 64: 1.41476, 127: 2.21416}
    assert_mels(frames[50], middle)
    assert_mels(frames[0], {0: -1.90827, 64: 1.04781, 127: 2.26862})


@given(num_samples=st.integers(481, 6_000), seed=st.integers(0, 100))
def test_every_frame_is_that_of_the_formula(num_samples, seed):
    noise = lcg_noise(num_samples, seed)
    frames = log_mel(noise, CONFIG)
    assert frames.shape == (1 + num_samples // 240, 128)
    np.testing.assert_allclose(frames, log_mel_as_written(noise), rtol=0, atol=1e-5)


@given(
    num_samples=st.integers(481, 80_000),
    cuts=st.lists(st.integers(0, 80_000), max_size=8),
    first_cuts=st.lists(st.integers(0, 1_500), max_size=8),
)
def test_a_signal_in_blocks_has_the_frames_of_the_whole(num_samples, cuts, first_cuts):
    noise = lcg_noise(num_samples)
    stream = LogMel(CONFIG)
    places = sorted(min(cut, num_samples) for cut in cuts + first_cuts)
    pieces = [*(stream.push(block) for block in np.split(noise, places)), stream.finish()]
    assert stream.num_samples == num_samples
    np.testing.assert_allclose(np.concatenate(pieces), log_mel(noise, CONFIG), rtol=0, atol=1e-6)


def test_frames_come_as_soon_as_their_samples():
    stream = LogMel(CONFIG)
    noise = lcg_noise(2_000)
    assert len(stream.push(noise[:480])) == 0
    assert len(stream.push(noise[480:481])) == 1  # the mirrored start and 480 samples after it
    assert len(stream.push(noise[481:719])) == 0
    assert len(stream.push(noise[719:720])) == 1
    assert len(stream.push(noise[720:])) == 5
    assert len(stream.finish()) == 2


@pytest.mark.parametrize("num_samples", [0, 10, 480])
def test_a_signal_without_samples_to_mirror_is_refused(num_samples):
    with pytest.raises(RequestError, match=f"has {num_samples} samples .* the least is 481"):
        log_mel(np.zeros(num_samples, np.float32), CONFIG)


def test_the_shortest_signal_has_three_frames():
    assert log_mel(lcg_noise(481), CONFIG).shape == (3, 128)


def test_filters_that_no_bin_reaches_are_silent():
    config = processor_config(num_mels=1024)
    filters = mel_filterbank(config)
    frames = log_mel(lcg_noise(2_400), config)
    is_empty = ~filters.any(axis=0)
    assert is_empty[:8].all()  # a whole band of them
    np.testing.assert_allclose(frames[:, is_empty], SILENCE, atol=1e-5)
    assert (frames[:, ~is_empty] > -12).all()
