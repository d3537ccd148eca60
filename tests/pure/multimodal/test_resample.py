import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from audio_signals import lcg_noise
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.resample import Resampler, resample

RATES = (1_000, 8_000, 11_025, 16_000, 22_050, 32_000, 44_056, 44_100, 48_000, 96_000, 192_000)


def kernel_as_written(rate):
    """The matrix [w, 2 * width + o] of audio.md 2.1, with width."""
    divisor = math.gcd(rate, 24_000)
    o, w = rate // divisor, 24_000 // divisor
    base = 0.99 * min(o, w)
    width = math.ceil(6 * o / base)
    j = np.arange(w, dtype=np.float32)[:, None] / np.float32(w)
    i = np.arange(2 * width + o)[None]
    t = np.clip((-j + (i - width) / o) * base, -6, 6)
    return (np.sinc(t) * np.cos(np.pi * t / 12) ** 2 * base / o).astype(np.float32), width


def resample_as_written(samples, rate):
    """Every output sample by the whole row of the matrix."""
    kernel, width = kernel_as_written(rate)
    w = len(kernel)
    o = kernel.shape[1] - 2 * width
    padded = np.concatenate([np.zeros(width), samples, np.zeros(width + o)])
    steps = range(len(samples) // o + 1)
    rows = [kernel @ padded[k * o : k * o + kernel.shape[1]] for k in steps]
    return np.concatenate(rows)[: math.ceil(np.float32(w * len(samples) / o))]


def tone_at(rate):
    """A second of 1 kHz, as in audio.md 2.3."""
    time = np.arange(rate) / rate
    return (0.5 * np.sin(2 * np.pi * 1000 * time)).astype(np.float32)


@pytest.mark.parametrize(
    ("rate", "width", "shape"),
    [
        (8_000, 7, (3, 15)),
        (16_000, 7, (3, 16)),
        (22_050, 7, (160, 161)),
        (32_000, 9, (3, 22)),
        (44_100, 12, (80, 171)),
        (48_000, 13, (1, 28)),
    ],
)
def test_the_reference_of_these_tests_has_the_kernels_of_the_sheet(rate, width, shape):
    kernel, found_width = kernel_as_written(rate)
    assert (found_width, kernel.shape) == (width, shape)


@pytest.mark.parametrize("rate", RATES)
def test_every_sample_is_that_of_the_kernel_as_written(rate):
    noise = lcg_noise(2 * rate // 3 + 11, seed=rate)
    expected = resample_as_written(noise, rate)
    found = resample(noise, rate, 24_000)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "expected"),
    [
        (16_000, [0.0, 0.129362, 0.249838, 0.353525, 0.432784, 0.482687]),
        (44_100, [0.0, 0.129399, 0.249987, 0.353542, 0.433001, 0.482948]),
    ],
)
def test_a_tone_gives_the_samples_of_the_sheet(rate, expected):
    found = resample(tone_at(rate), rate, 24_000)
    assert len(found) == 24_000
    np.testing.assert_allclose(found[12_000:12_006], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("rate", "num_samples", "expected"),
    [
        (44_100, 1_837_421, 999_957),  # exactly 999,957.01: fp32 loses the fraction
        (44_100, 1_837_422, 999_958),
        (16_000, 116_800, 175_200),
        (44_100, 321_930, 175_200),
        (48_000, 1, 1),
        (48_000, 3, 2),
        (48_000, 0, 0),
        (8_000, 1, 3),
        (24_000, 481, 481),
    ],
)
def test_the_length_is_the_ceiling_of_a_quotient_in_fp32(rate, num_samples, expected):
    assert len(resample(np.zeros(num_samples, np.float32), rate, 24_000)) == expected


def test_where_fp32_rounds_up_nothing_is_made_beyond_the_last_position():
    # 2 * 8,388,609.5 samples of 48 kHz: the quotient 8,388,609.5 rounds to 8,388,610 in fp32.
    assert len(resample(np.zeros(16_777_219, np.float32), 48_000, 24_000)) == 8_388_610


@given(
    rate=st.sampled_from(RATES),
    num_samples=st.integers(0, 5_000),
    cuts=st.lists(st.integers(0, 5_000), max_size=6),
)
def test_a_signal_in_blocks_is_the_whole_signal(rate, num_samples, cuts):
    noise = lcg_noise(num_samples)
    resampler = Resampler(rate, 24_000)
    blocks = np.split(noise, sorted(min(cut, num_samples) for cut in cuts))
    pieces = [*(resampler.push(block) for block in blocks), resampler.finish()]
    np.testing.assert_allclose(
        np.concatenate(pieces), resample(noise, rate, 24_000), rtol=0, atol=1e-6
    )


@given(st.integers(1_000, 100_000), st.integers(0, 3_000))
def test_any_rate_has_the_length_of_the_rule(rate, num_samples):
    divisor = math.gcd(rate, 24_000)
    o, w = rate // divisor, 24_000 // divisor
    expected = min(math.ceil(np.float32(w * num_samples / o)), (num_samples // o + 1) * w)
    assert len(resample(np.ones(num_samples, np.float32), rate, 24_000)) == expected


@pytest.mark.parametrize("rate", [767_999, 44_101, 1_001])
def test_rates_without_a_common_divisor_take_little_memory(rate):
    noise = lcg_noise(rate // 4)
    tracemalloc.start()
    found = resample(noise, rate, 24_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6  # the whole matrix would take 70 gigabytes at 767,999 Hz
    # White noise keeps the share of its power that lies below the new half rate.
    level = np.sqrt(min(1, 0.99 * 24_000 / rate)) * noise.std()
    assert found[100:-100].std() == pytest.approx(level, rel=0.05)


def test_a_constant_stays_constant_away_from_the_ends():
    for rate in (8_000, 44_100, 44_101, 96_000):
        found = resample(np.full(rate // 10, 0.5, np.float32), rate, 24_000)
        np.testing.assert_allclose(found[200:-200], 0.5, rtol=0, atol=1e-3)


@pytest.mark.parametrize("rate", [-24_000, 0, 999, 768_001])
def test_a_rate_that_no_sound_has_is_refused(rate):
    with pytest.raises(RequestError, match=r"1,000 to 768,000 Hz"):
        Resampler(rate, 24_000)


def test_equal_rates_leave_the_samples_alone():
    noise = lcg_noise(1_000)
    np.testing.assert_array_equal(resample(noise, 24_000, 24_000), noise)
