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
    num_channels = _size(reader, "audio_channels")
    reader.require("partial_rotary_factor", 1.0, default=1.0)
    layers = reader.take("projection_layers", int, default=2)
    if layers not in (1, 2):
        raise ConfigError(f"audio_config: projection_layers is {layers}, not 1 or 2")
    config = AudioEncoderConfig(
        num_channels=num_channels,
        group_size=_size(reader, "group_size"),
        segment_frames=_size(reader, "audio_segment_size"),
        num_layers=_size(reader, "input_local_layers"),
        hidden_size=_size(reader, "input_local_dim"),
        num_heads=_size(reader, "input_local_attn_heads"),
        head_dim=_size(reader, "input_local_head_dim"),
        intermediate_size=_size(reader, "input_local_intermediate_size"),
        is_causal=not reader.take("input_full_attention", bool),
        has_final_norm=reader.take("add_post_norm", bool),
        rope_theta=float(reader.take("rope_theta", float)),
        projection_layers=layers,
        out_hidden_size=_size(reader, "out_hidden_size"),
        vocab_sizes=_per_channel(reader, "speech_vocab_size", num_channels, minimum=1),
    )
    # Never looked up (audio.md 4), but its form is checked.
    _per_channel(reader, "speech_zeroemb_idx", num_channels, minimum=0)
    if config.head_dim % 2:
        raise ConfigError(f"audio_config: input_local_head_dim {config.head_dim} is odd")
    reader.finish(
        {"input_local_hidden_dropout": "training only"},
        remedy=None,
    )
    return config


def _size(reader: ConfigReader, key: str) -> int:
    """A number of something there must be one of at least."""
    value = reader.take(key, int)
    if value < 1:
        raise ConfigError(f"{key} is {value}; it must be at least 1")
    return value


def _per_channel(
    reader: ConfigReader, key: str, num_channels: int, *, minimum: int
) -> tuple[int, ...]:
    """ "1280", or a number a channel joined by "-"."""
    value = reader.take_any(key)
    try:
        sizes = [int(part) for part in str(value).split("-")]
    except ValueError:
        sizes = []
    if len(sizes) == 1:
        sizes *= num_channels
    if len(sizes) != num_channels or min(sizes) < minimum:
        raise ConfigError(
            f"audio_config: {key!r} must give one number, or {num_channels} joined by '-', of at "
            f"least {minimum} each, not {value!r}"
        )
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
    # Upstream pads by one frame whatever the kernel: any other width has unknown lengths.
    reader.require("kernel_size", 3)
    num_layers = _size(reader, "encoder_layers")
    is_causal = reader.take("encoder_causal", bool)
    windows = _audio_windows(reader, num_layers, is_causal)
    if facts.audio_mask == "bidirectional":
        # As the serving code upstream that has this mask: it drops the windows too.
        is_causal, windows = False, (None,) * num_layers
    config = AudioTokenizerConfig(
        num_mels=_size(reader, "n_mels"),
        d_model=_size(reader, "d_model"),
        num_layers=num_layers,
        num_heads=_size(reader, "encoder_attention_heads"),
        ffn_dim=_size(reader, "encoder_ffn_dim"),
        kernel_size=3,
        stride=_size(reader, "stride_size"),
        pool=_size(reader, "avg_pooler"),
        windows=windows,
        is_causal=is_causal,
        skip_layer=reader.take("encoder_skip_layer_id", int) - 1,
        rope_theta=float(reader.take("rope_theta", float)),
        codebook_sizes=_codebook_sizes(reader),
        bf16_tables=facts.audio_bf16_tables == "on",
    )
    if not 0 <= config.skip_layer < num_layers:
        raise ConfigError(
            f"encoder_skip_layer_id {config.skip_layer + 1} is none of the {num_layers} layers"
        )
    if config.d_model % (2 * config.num_heads):
        raise ConfigError(f"d_model {config.d_model} is not {config.num_heads} even heads")
    if config.pool == 1:
        raise ConfigError("avg_pooler is 1; only a tokenizer that pools (2 or more) can be served")
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
        "the mel front end: compared with processor_config (config/media.py)",
    ),
}


def _codebook_sizes(reader: ConfigReader) -> tuple[int, ...]:
    sizes = reader.take("codebook_size", list)
    num_quantizers = _size(reader, "num_quantizers")
    if len(sizes) != num_quantizers or not all(type(size) is int and size > 0 for size in sizes):
        raise ConfigError(f"codebook_size must list one size for each of {num_quantizers} levels")
    return tuple(sizes)


def _audio_windows(
    reader: ConfigReader, num_layers: int, is_causal: bool
) -> tuple[int | None, ...]:
    """Layer i is windowed iff i mod swa_per_block < swa_per_block - 1 (audio.md 1.4)."""
    window = reader.take("encoder_attn_window_size", list)
    is_hybrid = reader.take("hybrid_attention", bool, default=False)
    per_block = reader.take("swa_per_block", int, default=2)
    is_none = window == [-1, -1]
    is_past = len(window) == 2 and type(window[0]) is int and window[0] >= 0 and window[1] == 0
    if per_block < 1 or not (is_none or (is_past and is_causal)):
        raise ConfigError(
            f"encoder_attn_window_size is {window}, swa_per_block {per_block}, encoder_causal "
            f"{is_causal}; only [-1, -1], and [n, 0] in a causal encoder, can be served"
        )
    back = None if is_none else window[0]
    return tuple(
        back if not is_hybrid or i % per_block < per_block - 1 else None for i in range(num_layers)
    )
