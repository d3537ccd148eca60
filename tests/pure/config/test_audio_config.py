"""audio_config and audio_tokenizer/config.json give the facts of audio.md 1, or are refused."""

from typing import Any

import pytest

from mimo_engine.config.audio import (
    AudioEncoderConfig,
    AudioTokenizerConfig,
    parse_audio_config,
    parse_audio_tokenizer_config,
)
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.errors import ConfigError

AUDIO_CONFIG = {
    "add_post_norm": True,
    "audio_channels": 20,
    "audio_segment_size": 6000,
    "group_size": 4,
    "input_full_attention": True,
    "input_local_attn_heads": 16,
    "input_local_dim": 1024,
    "input_local_head_dim": 64,
    "input_local_hidden_dropout": 0.0,
    "input_local_intermediate_size": 4096,
    "input_local_layers": 6,
    "out_hidden_size": 4096,
    "partial_rotary_factor": 1.0,
    "projection_layers": 2,
    "rope_theta": 640000,
    "speech_vocab_size": "1280",
    "speech_zeroemb_idx": "1024",
}
TOKENIZER_CONFIG = {
    "d_model": 1024,
    "encoder_layers": 24,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "encoder_causal": True,
    "encoder_attn_window_size": [128, 0],
    "hybrid_attention": True,
    "swa_per_block": 2,
    "hybrid_block_size": 8,
    "encoder_skip_layer_id": 3,
    "kernel_size": 3,
    "stride_size": 2,
    "avg_pooler": 2,
    "max_audio_seconds": 300,
    "num_quantizers": 20,
    "codebook_size": [1024, 1024, 256, *[128] * 17],
    "threshold_ema_dead_code": 2,
    "n_mels": 128,
    "sampling_rate": 24000,
    "nfft": 960,
    "window_size": 960,
    "hop_length": 240,
    "fmin": 0,
    "fmax": None,
    "rope_theta": 10000,
    "rope_type": "default",
    "position_embedding_type": "rope",
    "ln_type": "LayerNorm",
    "activation_function": "gelu",
    "scale_embedding": False,
    "decoder_layers": 16,
    "decoder_attn_window_size": [64, 16],
    "vocoder_dim": 256,
}
UNREAD = ("input_local_hidden_dropout",)


def parse_tokenizer(facts: MediaFacts | None = None, **changes: Any) -> AudioTokenizerConfig:
    return parse_audio_tokenizer_config({**TOKENIZER_CONFIG, **changes}, facts or MediaFacts())


def test_the_released_audio_config() -> None:
    assert parse_audio_config(AUDIO_CONFIG) == AudioEncoderConfig(
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
        norm_eps=1e-6,
    )


def test_the_released_tokenizer_config() -> None:
    config = parse_tokenizer()
    assert config == AudioTokenizerConfig(
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
    assert config.head_dim == 64


def test_a_number_may_be_given_for_each_channel() -> None:
    sizes = "1025-1025-129-129"
    raw = {**AUDIO_CONFIG, "audio_channels": 4, "speech_vocab_size": sizes}
    assert parse_audio_config(raw).vocab_sizes == (1025, 1025, 129, 129)
    indices = {"speech_zeroemb_idx": "1024-1024-128-0"}
    assert parse_audio_config({**raw, **indices}).vocab_sizes == (1025, 1025, 129, 129)
    assert parse_audio_config({**AUDIO_CONFIG, "speech_vocab_size": 7}).vocab_sizes == (7,) * 20


@pytest.mark.parametrize("value", ["", "1280-1280", "-1280", "many", None, 1.5, "1280-" * 20])
@pytest.mark.parametrize("key", ["speech_vocab_size", "speech_zeroemb_idx"])
def test_a_value_that_gives_no_number_for_each_channel_is_refused(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=rf"{key}.*20"):
        parse_audio_config({**AUDIO_CONFIG, key: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"projection_layers": 3}, "projection_layers is 3"),
        ({"input_local_head_dim": 63}, "63 is odd"),
        ({"group_size": 0}, "group_size is 0"),
        ({"speech_vocab_size": "0"}, "speech_vocab_size.*at least 1"),
        ({"audio_channels": True}, "audio_channels"),
        ({"input_full_attention": 1}, "input_full_attention"),
        ({"rope_scaling": None}, "unknown key 'rope_scaling'"),
    ],
)
def test_an_audio_config_that_cannot_be_served_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_audio_config({**AUDIO_CONFIG, **changes})


@pytest.mark.parametrize("key", [key for key in AUDIO_CONFIG if key not in UNREAD])
def test_a_missing_key_of_audio_config_is_refused_or_has_the_published_default(key: str) -> None:
    raw = {name: value for name, value in AUDIO_CONFIG.items() if name != key}
    if key in ("partial_rotary_factor", "projection_layers"):
        assert parse_audio_config(raw) == parse_audio_config(AUDIO_CONFIG)
        return
    with pytest.raises(ConfigError, match=key):
        parse_audio_config(raw)


def test_causal_groups_and_a_single_linear_are_read() -> None:
    changes = {"input_full_attention": False, "projection_layers": 1, "add_post_norm": False}
    config = parse_audio_config({**AUDIO_CONFIG, **changes})
    assert (config.is_causal, config.projection_layers, config.has_final_norm) == (True, 1, False)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "yarn", None])
def test_other_types_of_rope_are_refused(rope_type: str | None) -> None:
    with pytest.raises(ConfigError, match=r"rope_type.*only 'default'"):
        parse_tokenizer(rope_type=rope_type)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"position_embedding_type": "absolute"}, "position_embedding_type"),
        ({"ln_type": "RMSNorm"}, "ln_type"),
        ({"activation_function": "gelu_new"}, "activation_function"),
        ({"scale_embedding": True}, "scale_embedding"),
        ({"kernel_size": 5}, "kernel_size"),
        ({"stride_size": 0}, "stride_size is 0"),
        ({"avg_pooler": 1}, "avg_pooler is 1"),
        ({"encoder_skip_layer_id": 0}, "encoder_skip_layer_id 0"),
        ({"encoder_skip_layer_id": 25}, "encoder_skip_layer_id 25"),
        ({"encoder_attention_heads": 24}, "d_model 1024 is not 24"),
        ({"encoder_attention_heads": 1024}, "d_model 1024 is not 1024"),
        ({"num_quantizers": 8}, "each of 8 levels"),
        ({"codebook_size": [128.0] * 20}, "codebook_size"),
        ({"codebook_size": [0] * 20}, "codebook_size"),
        ({"codebook_size": 1024}, "codebook_size"),
        ({"encoder_attn_window_size": [128, 128]}, "encoder_attn_window_size"),
        ({"encoder_attn_window_size": [128]}, "encoder_attn_window_size"),
        ({"encoder_attn_window_size": ["128", 0]}, "encoder_attn_window_size"),
        ({"encoder_causal": False}, "encoder_attn_window_size.*encoder_causal False"),
        ({"swa_per_block": 0}, "swa_per_block 0"),
        ({"encoder_prenorm": True}, "unknown key 'encoder_prenorm'"),
    ],
)
def test_a_tokenizer_that_cannot_be_served_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_tokenizer(**changes)


# No reader of the file needs them, or their only value that can be served stands for them.
OPTIONAL = {
    "rope_type", "position_embedding_type", "ln_type", "activation_function", "scale_embedding",
    "swa_per_block", "hybrid_block_size", "max_audio_seconds", "threshold_ema_dead_code",
    "sampling_rate", "nfft", "window_size", "hop_length", "fmin", "fmax", "decoder_layers",
    "decoder_attn_window_size", "vocoder_dim",
}  # fmt: skip


@pytest.mark.parametrize("key", [key for key in TOKENIZER_CONFIG if key != "hybrid_attention"])
def test_a_missing_key_of_the_tokenizer_is_refused_or_changes_nothing(key: str) -> None:
    raw = {name: value for name, value in TOKENIZER_CONFIG.items() if name != key}
    if key in OPTIONAL:
        assert parse_audio_tokenizer_config(raw, MediaFacts()) == parse_tokenizer()
        return
    with pytest.raises(ConfigError, match=key):
        parse_audio_tokenizer_config(raw, MediaFacts())


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (128, None, 128, None, 128, None)),
        ({"swa_per_block": 3}, (128, 128, None, 128, 128, None)),
        ({"swa_per_block": 1}, (None,) * 6),
        ({"hybrid_attention": False}, (128,) * 6),
        ({"encoder_attn_window_size": [-1, -1]}, (None,) * 6),
        ({"encoder_attn_window_size": [0, 0]}, (0, None) * 3),
    ],
)
def test_the_windows_of_layers(changes: dict[str, Any], expected: tuple[int | None, ...]) -> None:
    assert parse_tokenizer(encoder_layers=6, **changes).windows == expected


def test_without_the_key_attention_is_not_hybrid() -> None:
    raw = {name: v for name, v in TOKENIZER_CONFIG.items() if name != "hybrid_attention"}
    assert parse_audio_tokenizer_config(raw, MediaFacts()).windows == (128,) * 24


def test_a_bidirectional_file_stays_so_and_the_setting_makes_any_file_so() -> None:
    older = parse_tokenizer(encoder_causal=False, encoder_attn_window_size=[-1, -1])
    setting = parse_tokenizer(MediaFacts(audio_mask="bidirectional"))
    assert older == setting
    assert not setting.is_causal
    assert setting.windows == (None,) * 24


def test_tables_are_rounded_unless_the_setting_says_otherwise() -> None:
    assert not parse_tokenizer(MediaFacts(audio_bf16_tables="off")).bf16_tables
