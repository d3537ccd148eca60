"""config.json of every member of the family, and of transformers, gives the facts of text.md 1."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from mimo_engine.config.model import (
    AttentionKind,
    MlpKind,
    get_mimo_v2_fused_qkv_expected_tp_size,
    load_model_config,
    parse_model_config,
)
from mimo_engine.errors import ConfigError

DATA = Path(__file__).parents[2] / "data"
MEMBERS = (
    "v2-flash",
    "v2.5",
    "v2.5-base",
    "v2.5-pro",
    "v2.5-pro-fp4-dflash",
    "v2.6-flash",
    "v2.6-pro",
)
FLASH_FULL_LAYERS = [0, 5, 11, 17, 23, 29, 35, 41, 47]
PRO_FULL_LAYERS = [0, 7, 15, 23, 31, 39, 47, 55, 62, 69]


def raw_config(member: str, **changes: Any) -> dict[str, Any]:
    raw = json.loads((DATA / f"config-mimo-{member}.json").read_text())
    return {**raw, **changes}


def without(raw: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in raw.items() if key not in keys}


def native_config(**changes: Any) -> dict[str, Any]:
    """What transformers 5.23 writes for `mimo_v2_flash`, four layers deep."""
    rope = {"rope_type": "default", "partial_rotary_factor": 0.334}
    raw = {
        "architectures": ["MiMoV2FlashForCausalLM"],
        "model_type": "mimo_v2_flash",
        "dtype": "float32",
        "hidden_size": 256,
        "intermediate_size": 384,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 192,
        "v_head_dim": 128,
        "attention_value_scale": 0.707,
        "sliding_window": 129,
        "layer_types": ["full_attention", *["sliding_attention"] * 2, "full_attention"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "rope_parameters": {
            "full_attention": {**rope, "rope_theta": 5e6},
            "sliding_attention": {**rope, "rope_theta": 1e4},
        },
        "rms_norm_eps": 1e-5,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "vocab_size": 640,
        "max_position_embeddings": 4096,
        "eos_token_id": [3, 4],
    }
    return {**raw, **changes}


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_has_the_values_that_the_family_shares(member: str) -> None:
    config = parse_model_config(raw_config(member))
    assert config.vocab_size == 152576
    assert config.dtype == "bfloat16"
    assert config.window == 128
    assert config.eos_token_ids == (151645,)
    assert not config.is_native
    for index, spec in enumerate((*config.layers, config.mtp_layer)):
        assert (spec.qk_head_dim, spec.v_head_dim, spec.rotary_dim) == (192, 128, 64)
        assert spec.has_sink == spec.is_sliding
        assert spec.num_visible_tokens == (128 if spec.is_sliding else None)
        dense = index in (0, config.num_layers)
        assert spec.mlp is (MlpKind.DENSE if dense else MlpKind.MOE)
        assert spec.intermediate_size == (16384 if dense else 2048)
        if spec.is_sliding:
            assert (spec.rope_theta, spec.num_kv_heads) == (1e4, 8)
    assert config.mtp_layer.is_sliding
    assert config.router is not None
    assert config.router.num_experts_per_tok == 8
    assert config.router.scaling_factor == 1.0
    assert config.router.norm_topk_prob


@pytest.mark.parametrize("member", MEMBERS)
def test_every_member_has_the_widths_of_its_size(member: str) -> None:
    config = parse_model_config(raw_config(member))
    is_pro = "pro" in member
    full_layers = [i for i, spec in enumerate(config.layers) if not spec.is_sliding]
    full = config.layers[0]
    assert full_layers == (PRO_FULL_LAYERS if is_pro else FLASH_FULL_LAYERS)
    assert config.num_layers == (70 if is_pro else 48)
    assert config.hidden_size == (6144 if is_pro else 4096)
    assert full.num_heads == (128 if is_pro else 64)
    assert full.num_kv_heads == (8 if is_pro else 4)
    assert full.value_scale == (0.612 if is_pro else 0.707)
    assert config.router is not None
    assert config.router.num_experts == (384 if is_pro else 256)


@pytest.mark.parametrize(
    ("member", "chunks", "theta", "positions", "eps", "mxfp4", "towers", "mtp"),
    [
        ("v2-flash", None, 5e6, 262144, 1e-5, False, False, None),
        ("v2.5", 4, 1e7, 1048576, 1e-5, False, True, None),
        ("v2.5-base", 4, 1e7, 262144, 1e-5, False, True, None),
        ("v2.5-pro", 8, 1e7, 1048576, 1e-5, False, False, None),
        ("v2.5-pro-fp4-dflash", 8, 1e7, 1048576, 1e-5, True, False, None),
        ("v2.6-flash", 4, 1e7, 1048576, 1e-6, True, True, 3),
        ("v2.6-pro", 8, 1e7, 1048576, 1e-5, True, False, None),
    ],
)
def test_every_member_has_its_own_values(
    member: str,
    chunks: int | None,
    theta: float,
    positions: int,
    eps: float,
    mxfp4: bool,
    towers: bool,
    mtp: int | None,
) -> None:
    raw = raw_config(member)
    config = parse_model_config(raw)
    assert config.qkv_chunks == get_mimo_v2_fused_qkv_expected_tp_size(raw) == chunks
    assert config.layers[0].rope_theta == theta
    assert config.max_position_embeddings == positions
    assert config.norm_eps == eps
    assert config.quantization is not None
    assert config.quantization.experts_are_mxfp4 == mxfp4
    assert config.has_towers == towers
    assert config.num_mtp_layers == mtp


def test_a_token_costs_what_the_layers_say() -> None:
    layers = parse_model_config(raw_config("v2.5")).layers
    full = sum(s.kv_elements_per_token for s in layers if not s.is_sliding)
    assert full * 2 == 23040


def test_the_native_dialect_gives_the_same_kind_of_layers() -> None:
    config = parse_model_config(native_config())
    assert config.is_native
    assert config.qkv_chunks is None
    assert config.quantization is None
    assert config.eos_token_ids == (3, 4)
    assert [spec.attention for spec in config.layers] == [
        AttentionKind.FULL,
        AttentionKind.SLIDING,
        AttentionKind.SLIDING,
        AttentionKind.FULL,
    ]
    full, sliding = config.layers[0], config.layers[1]
    assert (full.num_kv_heads, sliding.num_kv_heads) == (4, 8)
    assert (full.rope_theta, sliding.rope_theta) == (5e6, 1e4)
    assert (full.has_sink, sliding.has_sink) == (False, True)
    assert (full.mlp, sliding.mlp) == (MlpKind.DENSE, MlpKind.MOE)


def test_the_native_window_is_the_number_of_visible_tokens() -> None:
    assert parse_model_config(native_config()).window == 129
    assert parse_model_config(native_config(), num_visible_tokens=128).window == 128


def test_the_window_can_be_set_to_129() -> None:
    assert parse_model_config(raw_config("v2.5"), num_visible_tokens=129).window == 129
    with pytest.raises(ConfigError, match="--num-visible-tokens must be at least 1"):
        parse_model_config(raw_config("v2.5"), num_visible_tokens=0)


def test_missing_keys_take_the_defaults_of_the_vendor() -> None:
    raw = without(
        raw_config("v2-flash"),
        "hybrid_layer_pattern",
        "moe_layer_freq",
        "attention_value_scale",
        "layernorm_epsilon",
        "sliding_window",
        "quantization_config",
    )
    config = parse_model_config(raw)
    assert all(s.attention is AttentionKind.FULL for s in config.layers)
    assert all(s.mlp is MlpKind.DENSE for s in config.layers)
    assert config.router is None
    assert config.layers[0].value_scale == 1.0
    assert config.norm_eps == 1e-6
    assert config.mtp_layer.num_visible_tokens == 128


def test_a_number_as_moe_layer_freq_is_a_period() -> None:
    config = parse_model_config(raw_config("v2.5", moe_layer_freq=2))
    assert [s.mlp is MlpKind.MOE for s in config.layers[:4]] == [True, False, True, False]


@pytest.mark.parametrize("where", [None, "quantization_config", "rope_scaling"])
def test_an_unknown_key_is_refused_by_name(where: str | None) -> None:
    raw = raw_config("v2.5")
    (raw if where is None else raw[where])["logit_softcap"] = 30.0
    with pytest.raises(ConfigError, match=r"unknown key 'logit_softcap'") as caught:
        parse_model_config(raw)
    assert ("--ignore-config-key" in str(caught.value)) == (where is None)


def test_an_unknown_key_can_be_vouched_for() -> None:
    raw = raw_config("v2.5", logit_softcap=None, other=1)
    parse_model_config(raw, ignore_keys=("logit_softcap", "other"))
    with pytest.raises(ConfigError, match="'other'"):
        parse_model_config(raw, ignore_keys=("logit_softcap",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act.*gelu"),
        ({"n_group": 4}, "n_group"),
        ({"scoring_func": "softmax"}, "scoring_func"),
        ({"n_shared_experts": 1}, "n_shared_experts"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
        ({"attention_bias": True}, "attention_bias"),
        ({"attention_projection_layout": "interleaved"}, "attention_projection_layout"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_type.*yarn"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}, "contradicts"),
        ({"hybrid_layer_pattern": [0, 1]}, "hybrid_layer_pattern"),
        ({"moe_layer_freq": [0, 2] * 24}, "moe_layer_freq may hold"),
        ({"sliding_window": 64}, "sliding_window_size is 128"),
        ({"num_key_value_heads": 5}, "not a multiple"),
        ({"swa_num_key_value_heads": 2}, "chunks"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok"),
        ({"vocab_size": "152576"}, "vocab_size.*must be int"),
        ({"architectures": ["LlamaForCausalLM"]}, "LlamaForCausalLM"),
        ({"moe_router_dtype": "float16"}, "moe_router_dtype"),
    ],
)
def test_a_value_that_cannot_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_model_config(raw_config("v2.5", **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"quant_method": "awq"}, "quant_method"),
        ({"weight_block_size": [1, 128]}, "weight_block_size"),
        ({"store_dtype": "nvfp4"}, "store_dtype"),
        ({"mxfp4_block_size": 16}, "mxfp4_block_size"),
    ],
)
def test_an_unknown_quantisation_is_refused(changes: dict[str, Any], message: str) -> None:
    raw = raw_config("v2.5")
    raw["quantization_config"] |= changes
    with pytest.raises(ConfigError, match=message):
        parse_model_config(raw)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_attention_heads", "rope_theta"])
def test_a_missing_key_without_a_default_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=key):
        parse_model_config(without(raw_config("v2.5"), key))


def test_stop_ids_are_merged_from_generation_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(raw_config("v2.5")))
    generation = {"eos_token_id": [151643, 151645, 151672]}
    (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    config = load_model_config(tmp_path)
    assert config.eos_token_ids == (151645, 151643, 151672)


def test_a_directory_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"config\.json"):
        load_model_config(tmp_path)


@pytest.mark.parametrize(
    ("layout", "heads", "expected"),
    [(None, 4, None), ("split", 4, None), ("fused_qkv", 4, 4), ("fused_qkv", 8, 8)],
)
def test_the_chunk_count_is_the_number_of_kv_heads(
    layout: str | None, heads: int, expected: int | None
) -> None:
    raw = {"attention_projection_layout": layout, "num_key_value_heads": heads}
    assert get_mimo_v2_fused_qkv_expected_tp_size(raw) == expected


@pytest.mark.parametrize("raw", [{}, {"num_key_value_heads": 0}, {"num_key_value_heads": "4"}])
def test_fused_without_kv_heads_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="num_key_value_heads"):
        get_mimo_v2_fused_qkv_expected_tp_size({"attention_projection_layout": "fused_qkv", **raw})
