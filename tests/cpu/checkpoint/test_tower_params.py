"""The table of the towers' parameters: what the modules ask for, and what the releases hold."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mimo_engine.checkpoint.names import IGNORED, ignored_reason, tower_of, tower_tensor_name
from mimo_engine.checkpoint.tower_params import (
    Tower,
    TowerParam,
    audio_encoder_params,
    audio_tokenizer_params,
    vision_params,
)
from mimo_engine.cli.tower_files import (
    RELEASED_AUDIO_TOKENIZER,
    SMALL_AUDIO_TOKENIZER,
    SMALL_TOWERS,
)
from mimo_engine.config.audio import parse_audio_config, parse_audio_tokenizer_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import parse_model_config
from mimo_engine.config.vision import parse_vision_config
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer
from mimo_engine.model.vision import MiMoVisionTransformer

RELEASED = json.loads((Path(__file__).parents[2] / "data/config-mimo-v2.5.json").read_text())
VISION = [
    RELEASED["vision_config"],
    SMALL_TOWERS["vision_config"],
    {**SMALL_TOWERS["vision_config"], "use_sink": False, "qk_channels": 32, "in_chans": 1},
]
AUDIO = [
    RELEASED["audio_config"],
    SMALL_TOWERS["audio_config"],
    {**SMALL_TOWERS["audio_config"], "projection_layers": 1, "add_post_norm": False},
    {**SMALL_TOWERS["audio_config"], "audio_channels": 2, "speech_vocab_size": "9-5"}
    | {"group_size": 3, "input_local_head_dim": 8},
]
TOKENIZER = [
    RELEASED_AUDIO_TOKENIZER,
    SMALL_AUDIO_TOKENIZER,
    {**SMALL_AUDIO_TOKENIZER, "num_quantizers": 2, "codebook_size": [5, 3], "avg_pooler": 4},
]


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    assert not list(module.buffers())
    return {name: tuple(tensor.shape) for name, tensor in module.named_parameters()}


def shapes_in(params: tuple[TowerParam, ...]) -> dict[str, tuple[int, ...]]:
    shapes = {param.name: param.shape for param in params}
    assert len(shapes) == len(params)
    return shapes


def num_weights(params: tuple[TowerParam, ...]) -> int:
    return sum(math.prod(param.shape) for param in params)


@pytest.mark.parametrize("raw", VISION, ids=["released", "small", "other"])
def test_the_vision_tower_has_these_parameters(raw: dict[str, Any]) -> None:
    config = parse_vision_config(raw, MediaFacts())
    with torch.device("meta"):
        module = MiMoVisionTransformer(config)
    assert shapes_in(vision_params(config)) == shapes_of(module)


@pytest.mark.parametrize("raw", AUDIO, ids=["released", "small", "one layer", "two channels"])
def test_the_audio_encoder_has_these_parameters(raw: dict[str, Any]) -> None:
    config = parse_audio_config(raw)
    with torch.device("meta"):
        module = MiMoAudioEncoder(config)
    assert shapes_in(audio_encoder_params(config)) == shapes_of(module)


@pytest.mark.parametrize("raw", TOKENIZER, ids=["released", "small", "other"])
def test_the_audio_tokenizer_has_these_parameters(raw: dict[str, Any]) -> None:
    config = parse_audio_tokenizer_config(raw, MediaFacts())
    with torch.device("meta"):
        module = MiMoAudioTokenizer(config)
    params = audio_tokenizer_params(config)
    assert shapes_in(params) == shapes_of(module)
    codebooks = [param.name for param in params if param.is_codebook]
    fixed = [n for n, tensor in module.named_parameters() if not tensor.requires_grad]
    assert codebooks == fixed
    assert len(codebooks) == len(config.codebook_sizes)


def released_params() -> tuple[tuple[TowerParam, ...], ...]:
    return (
        vision_params(parse_vision_config(VISION[0], MediaFacts())),
        audio_encoder_params(parse_audio_config(AUDIO[0])),
        audio_tokenizer_params(parse_audio_tokenizer_config(TOKENIZER[0], MediaFacts())),
    )


def test_the_released_towers_have_the_published_sizes() -> None:
    vision, audio_encoder, audio_tokenizer = released_params()
    assert (len(vision), num_weights(vision)) == (364, 728_594_432)
    assert (len(audio_encoder), num_weights(audio_encoder)) == (95, 261_127_168)
    codebooks = tuple(param for param in audio_tokenizer if param.is_codebook)
    assert (len(codebooks), num_weights(codebooks)) == (20, 4_587_520)
    assert len(audio_tokenizer) == 369 + 20
    assert num_weights(audio_tokenizer) == 307_927_040 + 4_587_520


def test_every_tensor_of_a_tower_in_the_main_files_has_its_reason_in_a_text_model() -> None:
    config = parse_model_config(RELEASED)
    vision, audio_encoder, _ = released_params()
    for param in (*vision, *audio_encoder):
        name = tower_tensor_name(param)
        assert tower_of(name) is param.tower
        matching = [ignored for ignored in IGNORED if ignored.pattern.fullmatch(name)]
        assert len(matching) == 1, name
        assert ignored_reason(name, config) == matching[0].reason


@pytest.mark.parametrize(
    "name",
    [
        "visual.patch_embed.proj.bias",
        "visual.merger.ln_q.bias",
        "visual.merger.mlp.0.bias",
        "visual.merger.mlp.1.weight",
        "visual.blocks.3.norm1.bias",
        "visual.blocks.3.attn.sinks.weight",
        "visual.blocks.3.attn.qkv.weight_scale_inv",
        "visual.blocks.x.attn.qkv.weight",
        "audio_encoder.speech_embeddings.0.weight",
        "audio_encoder.input_local_transformer.layers.0.self_attn.o_proj.bias",
        "audio_encoder.input_local_transformer.layers.0.self_attn.rotary_emb.inv_freq",
        "audio_encoder.projection.mlp.0.bias",
        "speech_embeddings.0.bias",
    ],
)
def test_no_other_tensor_under_a_towers_prefix_is_ignored(name: str) -> None:
    assert tower_of(name) in (Tower.VISION, Tower.AUDIO_ENCODER)
    assert ignored_reason(name, parse_model_config(RELEASED)) is None
