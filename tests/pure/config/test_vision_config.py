"""vision_config gives the facts of vision.md 1.1, or is refused."""

from typing import Any

import pytest

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.vision import MiMoVLVisionConfig, VisionOrder, parse_vision_config
from mimo_engine.errors import ConfigError

FULL_LAYERS = [0, 9, 18, 27]
ROW_LAYERS = [1, 2, 3, 4, 10, 11, 12, 13, 19, 20, 21, 22]
VISION_CONFIG = {
    "depth": 28,
    "fullatt_block_indexes": FULL_LAYERS,
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_chans": 3,
    "intermediate_size": 4608,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "num_query_groups": 4,
    "out_hidden_size": 4096,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "spatial_patch_size": 16,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "use_sink": True,
    "visual_token_window_size": 64,
    "vit_window_attn_types": [-1, *([0] * 4 + [1] * 4 + [-1]) * 3],
    "window_size": 128,
}


def parse(facts: MediaFacts | None = None, **changes: Any) -> MiMoVLVisionConfig:
    return parse_vision_config({**VISION_CONFIG, **changes}, facts or MediaFacts())


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in VISION_CONFIG.items() if name != key}


def test_the_released_sizes() -> None:
    config = parse()
    assert (config.hidden_size, config.intermediate_size, config.out_hidden_size) == (
        1280,
        4608,
        4096,
    )
    # The width of a head is in no file: 64, and not 1280 / 32.
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (32, 8, 64)
    assert (config.patch_size, config.temporal_patch_size, config.spatial_merge_size) == (16, 2, 2)
    assert (config.patch_dim, config.merge_unit, config.in_channels) == (1536, 4, 3)
    assert (config.norm_eps, config.rope_theta) == (1e-6, 10000.0)
    assert (config.sinks, config.merger_norm) == ("extra_column", "layernorm")


def test_the_released_layers() -> None:
    layers = parse().layers
    assert len(layers) == 28
    for index, layer in enumerate(layers):
        is_full = index in FULL_LAYERS
        assert layer.window == (None if is_full else 64)
        assert layer.has_sinks == (not is_full)
        is_row = is_full or index in ROW_LAYERS
        assert layer.order is (VisionOrder.ROW if is_row else VisionOrder.COLUMN)


def test_open_facts_are_settings() -> None:
    config = parse(MediaFacts(vision_sinks="key0", vision_merger_norm="rmsnorm"))
    assert (config.sinks, config.merger_norm) == ("key0", "rmsnorm")


def test_values_that_the_released_file_leaves_out_are_read_where_given() -> None:
    config = parse(qk_channels=80, kv_channels=80, rms_norm_eps=1e-5, use_sink=False)
    assert (config.head_dim, config.norm_eps) == (80, 1e-5)
    assert not any(layer.has_sinks for layer in config.layers)


def test_both_names_of_the_number_of_channels_are_known() -> None:
    raw = without("in_chans")
    assert parse_vision_config({**raw, "in_channels": 4}, MediaFacts()).in_channels == 4
    assert parse_vision_config(raw, MediaFacts()).in_channels == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"qk_channels": 64, "kv_channels": 128}, "qk_channels and kv_channels"),
        ({"num_key_value_heads": 5}, "32 heads of 64 over 5"),
        ({"qk_channels": 66}, "32 heads of 66"),
        ({"vit_window_attn_types": [-1] * 27}, "vit_window_attn_types"),
        ({"vit_window_attn_types": [-1, 2, *[0] * 26]}, "vit_window_attn_types"),
        ({"fullatt_block_indexes": [0]}, "disagree"),
        ({"visual_token_window_size": -1}, "visual_token_window_size"),
        ({"hidden_size": 1280.0}, "hidden_size"),
        ({"use_sink": 1}, "use_sink"),
        ({"spatial_patch_size": 14}, "spatial_patch_size"),
        ({"num_query_groups": 7}, "num_query_groups"),
        ({"in_channels": 1}, "in_channels"),
        ({"mrope_section": [16, 24, 24]}, "unknown key 'mrope_section'"),
    ],
)
def test_a_value_that_cannot_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


# Unread, or absent from files whose value is the default.
OPTIONAL = {
    "hidden_act", "in_chans", "num_query_groups", "spatial_merge_size", "spatial_patch_size",
    "temporal_patch_size", "tokens_per_second", "window_size",
}  # fmt: skip


@pytest.mark.parametrize("key", [key for key in VISION_CONFIG if key != "use_sink"])
def test_a_missing_key_is_refused_or_changes_nothing(key: str) -> None:
    if key in OPTIONAL:
        assert parse_vision_config(without(key), MediaFacts()) == parse()
        return
    with pytest.raises(ConfigError, match=key):
        parse_vision_config(without(key), MediaFacts())
