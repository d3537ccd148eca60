"""Records what torchaudio makes of sounds, for tests/pure/multimodal/test_torchaudio_parity.py.

torchaudio has no build for the torch that this project runs with, so it is no dependency of the
tests: its values are kept in torchaudio_audio.npz. To record them anew:

    python -m venv /tmp/torchaudio
    /tmp/torchaudio/bin/python -m pip install numpy torch==2.13.0
    /tmp/torchaudio/bin/python -m pip install --no-deps torchaudio==2.11.0
    rm /tmp/torchaudio/lib/python3*/site-packages/torchaudio/lib/_torchaudio*.so
    /tmp/torchaudio/bin/python tests/golden/torchaudio_audio.py

The compiled part, which does not load beside another torch, has no hand in what is used here.

Keys: resample.<rate>.<signal>.{length,samples}, at `sampled_positions`; logmel.<signal>, frames
`LOGMEL_FRAMES` of a sound at 24 kHz, computed in fp64; logmel_fp32.<signal>, the same as torchaudio
does it by default; filterbank, likewise in fp64.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torchaudio.functional import melscale_fbanks
from torchaudio.transforms import MelSpectrogram, Resample

sys.path.insert(0, str(Path(__file__).parents[1]))
from audio_signals import (
    GOLDEN_RATES,
    LOGMEL_FRAMES,
    golden_signals,
    sampled_positions,
)


def log_mel(samples: np.ndarray, dtype: torch.dtype) -> np.ndarray:
    """float32 [frames, mels], with windows, filters and sums in `dtype`."""
    torch.set_default_dtype(dtype)
    spectrogram = MelSpectrogram(
        sample_rate=24_000, n_fft=960, win_length=960, hop_length=240, f_min=0.0, f_max=None,
        n_mels=128, power=1.0, center=True,
    )  # fmt: skip
    mels = spectrogram(torch.from_numpy(samples).to(dtype)[None])[0]
    torch.set_default_dtype(torch.float32)
    return mels.clamp(min=1e-7).log().T.float().numpy()


def main() -> None:
    values: dict[str, np.ndarray] = {}
    for rate in GOLDEN_RATES:
        for name, signal in golden_signals(rate).items():
            resampled = Resample(rate, 24_000)(torch.from_numpy(signal)[None])[0].numpy()
            values[f"resample.{rate}.{name}.length"] = np.array(len(resampled))
            positions = sampled_positions(len(resampled))
            values[f"resample.{rate}.{name}.samples"] = resampled[positions]
    for name, signal in golden_signals(24_000).items():
        values[f"logmel.{name}"] = log_mel(signal, torch.float64)[LOGMEL_FRAMES]
        values[f"logmel_fp32.{name}"] = log_mel(signal, torch.float32)[LOGMEL_FRAMES]
    torch.set_default_dtype(torch.float64)
    filterbank = melscale_fbanks(481, 0.0, 12_000.0, 128, 24_000, norm=None, mel_scale="htk")
    values["filterbank"] = filterbank.float().numpy()
    np.savez_compressed(Path(__file__).with_suffix(".npz"), **values)


if __name__ == "__main__":
    main()
