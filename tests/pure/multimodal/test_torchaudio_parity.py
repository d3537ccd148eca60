"""Against values that torchaudio gave (tests/golden/torchaudio_audio.py)."""

from pathlib import Path

import numpy as np
import pytest

from audio_signals import GOLDEN_RATES, LOGMEL_FRAMES, golden_signals, sampled_positions
from media_config import processor_config
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.multimodal.audio import audio_features
from mimo_engine.multimodal.mel import log_mel, mel_filterbank
from mimo_engine.multimodal.resample import resample

CONFIG = processor_config()


@pytest.fixture(scope="module")
def golden():
    with np.load(Path(__file__).parents[2] / "golden" / "torchaudio_audio.npz") as values:
        return dict(values)


@pytest.mark.parametrize("rate", GOLDEN_RATES)
def test_resampled_sound_is_torchaudios(golden, rate):
    for name, signal in golden_signals(rate).items():
        found = resample(signal, rate, 24_000)
        assert len(found) == golden[f"resample.{rate}.{name}.length"]
        expected = golden[f"resample.{rate}.{name}.samples"]
        positions = sampled_positions(len(found))
        # Sums in fp32 in another order.
        np.testing.assert_allclose(found[positions], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["noise", "sweep"])
def test_log_mels_are_torchaudios_in_fp64(golden, name):
    found = log_mel(golden_signals(24_000)[name], CONFIG)
    np.testing.assert_allclose(found[LOGMEL_FRAMES], golden[f"logmel.{name}"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", ["noise", "sweep"])
def test_log_mels_are_torchaudios_in_fp32_but_for_its_rounding(golden, name):
    found = log_mel(golden_signals(24_000)[name], CONFIG)[LOGMEL_FRAMES]
    # fp32 places the mel points thousandths of a hertz off, which moves weights by 1e-5 and more.
    difference = abs(found - golden[f"logmel_fp32.{name}"])
    assert difference.max() < 3e-5
    assert difference.mean() < 5e-6


def test_the_filterbank_is_torchaudios_in_fp64(golden):
    np.testing.assert_array_equal(mel_filterbank(CONFIG), golden["filterbank"])


def test_features_are_the_log_mels_of_the_resampled_sound(golden):
    signal = golden_signals(24_000)["sweep"]
    features = audio_features((signal, 24_000), CONFIG, MediaLimits())
    (segment,) = features.shared.arrays
    np.testing.assert_allclose(segment[LOGMEL_FRAMES], golden["logmel.sweep"], rtol=0, atol=2e-6)
