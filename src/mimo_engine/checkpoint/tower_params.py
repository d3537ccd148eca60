"""Every parameter of the towers, as data: name, shape, and which of them are codebooks.

The names are those of the modules in `model/` (vision.md 3, audio.md 5), so that this list is what
the modules ask for and what the loader fills; `names.py` says which tensors of the files fill it.
Towers are whole on the rank that runs them: nothing here is cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from mimo_engine.config.audio import AudioEncoderConfig, AudioTokenizerConfig
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.vision import MiMoVLVisionConfig

__all__ = [
    "Tower",
    "TowerParam",
    "audio_encoder_params",
    "audio_tokenizer_params",
    "tower_params",
    "vision_params",
]

Shape = tuple[int, ...]


class Tower(StrEnum):
    """The modules beside the text model."""

    VISION = "vision tower"
    AUDIO_ENCODER = "audio encoder"
    AUDIO_TOKENIZER = "audio tokenizer"


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerParam:
    """One parameter of a tower."""

    tower: Tower
    name: str
    """Within the tower's module."""
    shape: Shape
    is_codebook: bool = False
    """Held in float32 whatever the tower's dtype: distances to it choose the codes."""


def tower_params(media: MediaConfig) -> tuple[TowerParam, ...]:
    """Of all towers."""
    return (
        *vision_params(media.vision),
        *audio_encoder_params(media.audio),
        *audio_tokenizer_params(media.audio_tokenizer),
    )


def vision_params(config: MiMoVLVisionConfig) -> tuple[TowerParam, ...]:
    """Of the vision tower, in the order of the forward pass."""
    return _params(Tower.VISION, _vision(config))


def audio_encoder_params(config: AudioEncoderConfig) -> tuple[TowerParam, ...]:
    """Of the audio encoder, in the order of the forward pass."""
    return _params(Tower.AUDIO_ENCODER, _audio_encoder(config))


def audio_tokenizer_params(config: AudioTokenizerConfig) -> tuple[TowerParam, ...]:
    """Of the audio tokenizer, in the order of the forward pass; codebooks last."""
    codebooks = (
        TowerParam(
            tower=Tower.AUDIO_TOKENIZER,
            name=f"encoder.quantizer.vq.layers.{level}._codebook.embed",
            shape=(size, config.d_model),
            is_codebook=True,
        )
        for level, size in enumerate(config.codebook_sizes)
    )
    return (*_params(Tower.AUDIO_TOKENIZER, _audio_tokenizer(config), "encoder."), *codebooks)


def _params(
    tower: Tower, shapes: Iterable[tuple[str, Shape]], prefix: str = ""
) -> tuple[TowerParam, ...]:
    return tuple(
        TowerParam(tower=tower, name=f"{prefix}{name}", shape=shape) for name, shape in shapes
    )


def _vision(config: MiMoVLVisionConfig) -> Iterator[tuple[str, Shape]]:
    hidden, head_dim = config.hidden_size, config.head_dim
    query_rows = config.num_heads * head_dim
    qkv_rows = query_rows + 2 * config.num_kv_heads * head_dim
    patch = (config.in_channels, config.temporal_patch_size, config.patch_size, config.patch_size)
    yield "patch_embed.proj.weight", (hidden, *patch)
    for index, layer in enumerate(config.layers):
        block = f"blocks.{index}."
        yield f"{block}norm1.weight", (hidden,)
        yield from _biased(f"{block}attn.qkv", qkv_rows, hidden)
        if layer.has_sinks:
            yield f"{block}attn.sinks", (config.num_heads,)
        yield from _biased(f"{block}attn.proj", hidden, query_rows)
        yield f"{block}norm2.weight", (hidden,)
        yield from _biased(f"{block}mlp.gate_proj", config.intermediate_size, hidden)
        yield from _biased(f"{block}mlp.up_proj", config.intermediate_size, hidden)
        yield from _biased(f"{block}mlp.down_proj", hidden, config.intermediate_size)
    merged = config.merge_unit * hidden
    yield "merger.ln_q.weight", (hidden,)
    yield "merger.mlp.0.weight", (merged, merged)
    yield "merger.mlp.2.weight", (config.out_hidden_size, merged)


def _audio_encoder(config: AudioEncoderConfig) -> Iterator[tuple[str, Shape]]:
    hidden, width = config.hidden_size, config.intermediate_size
    attention_rows = config.num_heads * config.head_dim
    for channel, num_rows in enumerate(config.vocab_sizes):
        yield f"speech_embeddings.{channel}.weight", (num_rows, hidden)
    for index in range(config.num_layers):
        layer = f"input_local_transformer.layers.{index}."
        yield f"{layer}input_layernorm.weight", (hidden,)
        for part in ("q", "k", "v"):
            yield from _biased(f"{layer}self_attn.{part}_proj", attention_rows, hidden)
        yield f"{layer}self_attn.o_proj.weight", (hidden, attention_rows)
        yield f"{layer}post_attention_layernorm.weight", (hidden,)
        yield f"{layer}mlp.gate_proj.weight", (width, hidden)
        yield f"{layer}mlp.up_proj.weight", (width, hidden)
        yield f"{layer}mlp.down_proj.weight", (hidden, width)
    if config.has_final_norm:
        yield "input_local_transformer.norm.weight", (hidden,)
    group = config.group_size * hidden
    if config.projection_layers == 1:
        yield "projection.mlp.0.weight", (config.out_hidden_size, group)
    else:
        yield "projection.mlp.0.weight", (4 * group, group)
        yield "projection.mlp.2.weight", (config.out_hidden_size, 4 * group)


def _audio_tokenizer(config: AudioTokenizerConfig) -> Iterator[tuple[str, Shape]]:
    """Names without `encoder.`; the K projection has no bias (audio.md 0.5)."""
    width, kernel = config.d_model, config.kernel_size
    yield from _biased("conv1", width, config.num_mels, kernel)
    yield from _biased("conv2", width, width, kernel)
    for index in range(config.num_layers):
        layer = f"layers.{index}."
        yield from _biased(f"{layer}self_attn_layer_norm", width)
        yield from _biased(f"{layer}self_attn.q_proj", width, width)
        yield f"{layer}self_attn.k_proj.weight", (width, width)
        yield from _biased(f"{layer}self_attn.v_proj", width, width)
        yield from _biased(f"{layer}self_attn.out_proj", width, width)
        yield from _biased(f"{layer}final_layer_norm", width)
        yield from _biased(f"{layer}fc1", config.ffn_dim, width)
        yield from _biased(f"{layer}fc2", width, config.ffn_dim)
    yield from _biased("layer_norm", width)
    yield "down_sample_layer.0.weight", (width, width, config.pool)
    yield from _biased("down_sample_norm", width)


def _biased(name: str, *shape: int) -> Iterator[tuple[str, Shape]]:
    """A weight of `shape` and the bias of its rows."""
    yield f"{name}.weight", shape
    yield f"{name}.bias", shape[:1]
