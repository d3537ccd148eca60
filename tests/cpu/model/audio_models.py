"""Audio towers for tests: configurations, weights, and both implementations over the same ones."""

import numpy as np
import torch
from torch import nn

from mimo_engine.config.audio import AudioEncoderConfig, AudioTokenizerConfig
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer

RELEASED_TOKENIZER = AudioTokenizerConfig(
    num_mels=128,
    d_model=1024,
    num_layers=24,
    num_heads=16,
    ffn_dim=4096,
    kernel_size=3,
    stride=2,
    pool=2,
    windows=(128, None) * 12,
    is_causal=True,
    skip_layer=2,
    rope_theta=10000.0,
    codebook_sizes=(1024, 1024, 256, *[128] * 17),
    bf16_tables=True,
)
RELEASED_ENCODER = AudioEncoderConfig(
    num_channels=20,
    group_size=4,
    segment_frames=6000,
    num_layers=6,
    hidden_size=1024,
    num_heads=16,
    head_dim=64,
    intermediate_size=4096,
    is_causal=False,
    has_final_norm=True,
    rope_theta=640000.0,
    projection_layers=2,
    out_hidden_size=4096,
    vocab_sizes=(1280,) * 20,
)
# The geometry of audio.md 10.3.
GOLDEN_TOKENIZER = AudioTokenizerConfig(
    num_mels=4,
    d_model=8,
    num_layers=4,
    num_heads=2,
    ffn_dim=16,
    kernel_size=3,
    stride=2,
    pool=2,
    windows=(3, None) * 2,
    is_causal=True,
    skip_layer=2,
    rope_theta=10000.0,
    codebook_sizes=(8, 8, 4),
    bf16_tables=False,
)
GOLDEN_ENCODER = AudioEncoderConfig(
    num_channels=3,
    group_size=4,
    segment_frames=48,
    num_layers=2,
    hidden_size=8,
    num_heads=2,
    head_dim=4,
    intermediate_size=16,
    is_causal=False,
    has_final_norm=True,
    rope_theta=640000.0,
    projection_layers=2,
    out_hidden_size=6,
    vocab_sizes=(16,) * 3,
)
SMALL_TOKENIZER = AudioTokenizerConfig(
    num_mels=6,
    d_model=32,
    num_layers=4,
    num_heads=4,
    ffn_dim=48,
    kernel_size=3,
    stride=2,
    pool=2,
    windows=(5, None) * 2,
    is_causal=True,
    skip_layer=1,
    rope_theta=10000.0,
    codebook_sizes=(40, 30, 20, 10),
    bf16_tables=True,
)


def meta_shapes(model: type[nn.Module], config: object) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {name: tuple(p.shape) for name, p in model(config).named_parameters()}


def random_weights(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, torch.Tensor]:
    """fp32: norms near 1, everything else of the scale that keeps activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in shapes.items():
        noise = torch.randn(shape, generator=generator)
        if "norm" in name:
            weights[name] = 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith(("bias", "embed")) or "speech_embeddings" in name:
            weights[name] = 0.5 * noise
        else:
            weights[name] = noise * noise[0].numel() ** -0.5
    return weights


def tokenizer_of(
    config: AudioTokenizerConfig, weights: dict[str, torch.Tensor]
) -> MiMoAudioTokenizer:
    return MiMoAudioTokenizer.from_weights(config, weights)


def encoder_of(config: AudioEncoderConfig, weights: dict[str, torch.Tensor]) -> MiMoAudioEncoder:
    return MiMoAudioEncoder.from_weights(config, weights)


def random_tokenizer(config: AudioTokenizerConfig, seed: int = 0) -> MiMoAudioTokenizer:
    return tokenizer_of(config, random_weights(meta_shapes(MiMoAudioTokenizer, config), seed))


def random_encoder(config: AudioEncoderConfig, seed: int = 0) -> MiMoAudioEncoder:
    return encoder_of(config, random_weights(meta_shapes(MiMoAudioEncoder, config), seed))


def arrays_of(model: nn.Module) -> dict[str, np.ndarray]:
    """The parameters as the reference takes them, in fp32: it widens each where it uses it."""
    return {name: p.detach().float().numpy() for name, p in model.named_parameters()}


def codebooks_of(model: MiMoAudioTokenizer) -> list[np.ndarray]:
    names = [name for name, _ in model.named_parameters() if name.endswith("embed")]
    return [model.get_parameter(name).numpy().astype(np.float64) for name in names]


def random_mel(num_frames: int, num_mels: int, seed: int = 0) -> torch.Tensor:
    """Of the range of log-mels: most energy within a few nepers, some bands empty."""
    generator = torch.Generator().manual_seed(seed)
    return 2.0 * torch.randn(num_frames, num_mels, generator=generator) - 1.0


def assert_rows_close(got: torch.Tensor, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    """|got - expected| <= tolerance |expected| in the 2-norm, for each row.

    1e-5: fp32 through all layers against float64, about a hundred roundings of 6e-8.
    """
    rows = got.detach().double().numpy()
    assert rows.shape == expected.shape
    error = np.linalg.norm(rows - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < tolerance, error.max()


def assert_codes_agree(
    codes: np.ndarray,
    expected_codes: np.ndarray,
    features: np.ndarray,
    expected_features: np.ndarray,
    codebooks: list[np.ndarray],
) -> int:
    """Codes are equal, or the first that differs in a frame is a near-tie; returns their number.

    Proof of a near-tie: moving the residual by e changes d(a) - d(b) by at most 2 |a - b| |e|, so a
    different choice is right iff the gap of the expected distances is within that. |e| is the
    measured difference of the features plus what fp32 residuals round, 1e-6 |r|.
    """
    num_ties = 0
    for frame in np.flatnonzero((codes != expected_codes).any(axis=1)):
        num_ties += 1
        residual = expected_features[frame]
        error = np.linalg.norm(features[frame] - residual) + 1e-6 * np.linalg.norm(residual)
        for level, codebook in enumerate(codebooks):
            chosen, expected = codebook[codes[frame, level]], codebook[expected_codes[frame, level]]
            if codes[frame, level] != expected_codes[frame, level]:
                gap = ((residual - chosen) ** 2).sum() - ((residual - expected) ** 2).sum()
                assert gap <= 2 * np.linalg.norm(chosen - expected) * error, (frame, level, gap)
                break
            residual = residual - expected
    return num_ties
