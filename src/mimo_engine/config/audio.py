"""The audio tokenizer (audio_tokenizer/config.json) and the audio encoder (audio_config)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.reader import ConfigReader
from mimo_engine.errors import ConfigError

__all__ = [
    "AUDIO_TOKENIZER_DIR",
    "AudioEncoderConfig",
    "AudioTokenizerConfig",
    "parse_audio_config",
    "parse_audio_tokenizer_config",
]

AUDIO_TOKENIZER_DIR = "audio_tokenizer"
"""Folder of a checkpoint with the tokenizer's config.json and model.safetensors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioTokenizerConfig:
    """From mel frames to codes (audio.md 1.4 and 3)."""

    num_mels: int
    d_model: int
    num_layers: int
    num_heads: int
    ffn_dim: int
    kernel_size: int
    stride: int
    pool: int
    """Stride of the pooling at the end."""
    windows: tuple[int | None, ...]
    """By layer: a query sees this many earlier frames besides its own; None: all of them."""
    is_causal: bool
    skip_layer: int
    """Index of the layer whose output is added to the last one's."""
    rope_theta: float
    codebook_sizes: tuple[int, ...]
    bf16_tables: bool
    """Round codebooks and rotary frequencies to bf16, as all published inference does."""

    @property
    def head_dim(self) -> int:
        return self.d_model // self.num_heads


@dataclass(frozen=True, kw_only=True, slots=True)
class AudioEncoderConfig:
    """From codes to rows of the language model (audio.md 1.1 and 4)."""

    num_channels: int
    group_size: int
    segment_frames: int
    """Mel frames that are encoded together."""
    num_layers: int
    hidden_size: int
    num_heads: int
    head_dim: int
    intermediate_size: int
    is_causal: bool
    """Inside a group; False in the released models."""
    has_final_norm: bool
    rope_theta: float
    projection_layers: int
    out_hidden_size: int
    vocab_sizes: tuple[int, ...]
    """Rows of each channel's embedding table."""
    norm_eps: float = 1e-6


def parse_audio_config(raw: Mapping[str, Any]) -> AudioEncoderConfig:
    """audio_config as published. Raises ConfigError."""
    reader = ConfigReader(raw, where="audio_config")
    num_channels = reader.take("audio_channels", int)
    reader.require("partial_rotary_factor", 1.0, default=1.0)
    layers = reader.take("projection_layers", int, default=2)
    if layers not in (1, 2):
        raise ConfigError(f"audio_config: projection_layers is {layers}, not 1 or 2")
    config = AudioEncoderConfig(
        num_channels=num_channels,
        group_size=reader.take("group_size", int),
        segment_frames=reader.take("audio_segment_size", int),
        num_layers=reader.take("input_local_layers", int),
        hidden_size=reader.take("input_local_dim", int),
        num_heads=reader.take("input_local_attn_heads", int),
        head_dim=reader.take("input_local_head_dim", int),
        intermediate_size=reader.take("input_local_intermediate_size", int),
        is_causal=not reader.take("input_full_attention", bool),
        has_final_norm=reader.take("add_post_norm", bool),
        rope_theta=float(reader.take("rope_theta", float)),
        projection_layers=layers,
        out_hidden_size=reader.take("out_hidden_size", int),
        vocab_sizes=_per_channel(reader.take_any("speech_vocab_size"), num_channels),
    )
    _per_channel(reader.take_any("speech_zeroemb_idx"), num_channels)
    reader.finish(
        {"input_local_hidden_dropout": "training only"},
        remedy=None,
    )
    return config


def _per_channel(value: Any, num_channels: int) -> tuple[int, ...]:
    """ "1280", or a number a channel joined by "-"."""
    try:
        sizes = [int(part) for part in str(value).split("-")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= num_channels
    if len(sizes) != num_channels or min(sizes) < 1:
        raise ConfigError(f"audio_config: {value!r} gives no number for {num_channels} channels")
    return tuple(sizes)


def parse_audio_tokenizer_config(raw: Mapping[str, Any], facts: MediaFacts) -> AudioTokenizerConfig:
    """audio_tokenizer/config.json as published. Raises ConfigError; rope of any other type than
    "default" is refused (audio.md 3.3: the dynamic update upstream is the identity for it)."""
    reader = ConfigReader(raw, where=f"{AUDIO_TOKENIZER_DIR}/config.json")
    reader.require("rope_type", "default", default="default")
    reader.require("position_embedding_type", "rope", default="rope")
    reader.require("ln_type", "LayerNorm", default="LayerNorm")
    reader.require("activation_function", "gelu", default="gelu")
    reader.require("scale_embedding", False, default=False)
    num_layers = reader.take("encoder_layers", int)
    is_causal = reader.take("encoder_causal", bool)
    skip = reader.take("encoder_skip_layer_id", int)
    sizes = reader.take("codebook_size", list)
    num_quantizers = reader.take("num_quantizers", int)
    if len(sizes) != num_quantizers or any(not isinstance(size, int) for size in sizes):
        raise ConfigError(f"codebook_size must list one size for each of {num_quantizers} levels")
    if not 1 <= skip <= num_layers:
        raise ConfigError(f"encoder_skip_layer_id {skip} is none of the {num_layers} layers")
    if facts.audio_mask == "bidirectional":
        is_causal = False
    config = AudioTokenizerConfig(
        num_mels=reader.take("n_mels", int),
        d_model=reader.take("d_model", int),
        num_layers=num_layers,
        num_heads=reader.take("encoder_attention_heads", int),
        ffn_dim=reader.take("encoder_ffn_dim", int),
        kernel_size=reader.take("kernel_size", int),
        stride=reader.take("stride_size", int),
        pool=reader.take("avg_pooler", int),
        windows=_audio_windows(reader, num_layers, is_causal),
        is_causal=is_causal,
        skip_layer=skip - 1,
        rope_theta=float(reader.take("rope_theta", float)),
        codebook_sizes=tuple(sizes),
        bf16_tables=facts.audio_bf16_tables == "on",
    )
    unused = [key for key in raw if key.startswith(("decoder_", "vocoder_"))]
    reader.finish({**_UNUSED_TOKENIZER, **dict.fromkeys(unused, "speech generation")}, remedy=None)
    return config


_UNUSED_TOKENIZER = {
    "architectures": "a name",
    "dtype": "the tensors say it",
    "hybrid_block_size": "unused by every reader (audio.md 1.4)",
    "max_audio_seconds": "metadata, not a limit (audio.md 1.4)",
    "model_type": "a name",
    "threshold_ema_dead_code": "training only",
    "torch_dtype": "the tensors say it",
    "transformers_version": "bookkeeping of transformers",
    **dict.fromkeys(
        ("sampling_rate", "nfft", "window_size", "hop_length", "fmin", "fmax"),
        "the mel front end, which processor_config describes",
    ),
}


def _audio_windows(
    reader: ConfigReader, num_layers: int, is_causal: bool
) -> tuple[int | None, ...]:
    """Layer i is windowed iff i mod swa_per_block < swa_per_block - 1 (audio.md 1.4)."""
    window = reader.take("encoder_attn_window_size", list)
    is_hybrid = reader.take("hybrid_attention", bool, default=False)
    per_block = reader.take("swa_per_block", int, default=2)
    if len(window) != 2 or window[1] not in (0, -1) or per_block < 1:
        raise ConfigError(f"encoder_attn_window_size is {window}; only [n, 0] and [-1, -1] run")
    # The bidirectional variant (settings.md) is the one upstream that has no window either.
    back = None if window[0] < 0 or not is_causal else window[0]
    return tuple(
        back if not is_hybrid or i % per_block < per_block - 1 else None for i in range(num_layers)
    )
