"""What the model is: one `ModelConfig`, made once from config.json (its layers: `layers.py`).

Two dialects are read. *hub* is what Xiaomi publishes (`hybrid_layer_pattern`, `swa_*`,
`layernorm_epsilon`); *native* is what transformers writes for `mimo_v2_flash` (`layer_types`,
`mlp_layer_types`, `rope_parameters` by kind, `rms_norm_eps`). No other file reads config.json, and
no other file holds a default for a missing key.

Every key is either consumed here or listed in `BOILERPLATE` with the reason; any other key is an
error, because a key that is skipped is a model that is silently wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mimo_engine.config.layers import AttentionKind, LayerSpec, MlpKind, read_layers
from mimo_engine.config.reader import ConfigReader, read_json_object
from mimo_engine.errors import ConfigError

__all__ = [
    "AttentionKind",
    "LayerSpec",
    "MlpKind",
    "ModelConfig",
    "QuantizationConfig",
    "RouterSpec",
    "get_mimo_v2_fused_qkv_expected_tp_size",
    "load_model_config",
    "parse_model_config",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RouterSpec:
    """Sigmoid scores; the bias only chooses; weights are the unbiased scores, renormalised."""

    num_experts: int
    num_experts_per_tok: int
    norm_topk_prob: bool
    scaling_factor: float


@dataclass(frozen=True, kw_only=True, slots=True)
class QuantizationConfig:
    """How linears may be stored. Which of them are is decided tensor by tensor (text.md 1.3)."""

    block_size: int
    """FP8 weights have one fp32 scale per block_size x block_size block."""
    experts_are_mxfp4: bool
    mxfp4_group_size: int
    ignored_layers: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The text model, and the raw nested dictionaries of the towers."""

    architecture: str
    model_type: str
    is_native: bool
    """True for the dialect that transformers writes."""
    vocab_size: int
    hidden_size: int
    layers: tuple[LayerSpec, ...]
    mtp_layer: LayerSpec
    """Geometry of every MTP layer. Their number is read from the tensor names (mtp.md 5.1)."""
    num_mtp_layers: int | None
    """What the config claims, where it does; the files decide."""
    norm_eps: float
    router: RouterSpec | None
    max_position_embeddings: int
    qkv_chunks: int | None
    """T, the number of chunks in a fused qkv tensor; None: q, k and v are separate tensors."""
    quantization: QuantizationConfig | None
    dtype: str
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    media: Mapping[str, Any]
    """vision_config, audio_config, processor_config and the media token ids, as written."""

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    @property
    def has_towers(self) -> bool:
        return any(key in self.media for key in ("vision_config", "audio_config"))

    @property
    def window(self) -> int | None:
        """Visible tokens of the sliding layers, or None when there is no sliding layer."""
        return next((s.num_visible_tokens for s in self.layers if s.is_sliding), None)


# key -> why it changes nothing here. Grouped by what the reasons have in common.
BOILERPLATE: dict[str, str] = {
    **dict.fromkeys(
        ("transformers_version", "_name_or_path", "auto_map", "torch_dtype", "use_cache"),
        "bookkeeping of transformers",
    ),
    **dict.fromkeys(
        ("initializer_range", "attention_dropout", "output_router_logits", "router_aux_loss_coef"),
        "training only",
    ),
    **dict.fromkeys(
        ("return_dict", "output_hidden_states", "output_attentions", "chunk_size_feed_forward"),
        "options of a transformers call",
    ),
    **dict.fromkeys(
        ("id2label", "label2id", "problem_type", "is_encoder_decoder"),
        "heads this model has not",
    ),
    "attention_chunk_size": "never used by the model (text.md 1.1)",
    "hybrid_block_size": "no effect when hybrid_layer_pattern is given (text.md 1.2)",
    "vision_model_type": "names the tower class upstream",
    "bos_token_id": "no BOS is ever added (protocol.md 1.1)",
}

_MEDIA_KEYS = (
    "vision_config", "audio_config", "processor_config", "image_token_id", "video_token_id",
    "audio_token_id", "vision_start_token_id", "vision_end_token_id", "audio_start_token_id",
    "audio_end_token_id", "video_start_token_id", "video_end_token_id",
)  # fmt: skip

_ARCHITECTURES = ("MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM")


def get_mimo_v2_fused_qkv_expected_tp_size(config: Mapping[str, Any]) -> int | None:
    """Chunk count T of the fused qkv tensors: 4 or 8 in the released files, None when split.

    Takes the raw config.json (text.md 3.3: T equals `num_key_value_heads`). Raises ConfigError on
    a layout that is neither split nor fused_qkv.
    """
    layout = config.get("attention_projection_layout")
    if layout in (None, "split"):
        return None
    if layout != "fused_qkv":
        raise ConfigError(
            f"attention_projection_layout is {layout!r}; known layouts are 'split' and 'fused_qkv'"
        )
    num_kv_heads = config.get("num_key_value_heads")
    if not isinstance(num_kv_heads, int) or num_kv_heads < 1:
        raise ConfigError("attention_projection_layout fused_qkv needs num_key_value_heads")
    return num_kv_heads


def load_model_config(
    model_dir: Path,
    *,
    num_visible_tokens: int | None = None,
    ignore_keys: tuple[str, ...] = (),
) -> ModelConfig:
    """Read `config.json` (and the stop ids of `generation_config.json`) in `model_dir`.

    Raises ConfigError; see `parse_model_config`.
    """
    raw = read_json_object(model_dir / "config.json")
    config = parse_model_config(raw, num_visible_tokens=num_visible_tokens, ignore_keys=ignore_keys)
    generation_path = model_dir / "generation_config.json"
    if generation_path.exists():
        extra = _token_ids(read_json_object(generation_path).get("eos_token_id"), "eos_token_id")
        merged = dict.fromkeys((*config.eos_token_ids, *extra))
        config = replace(config, eos_token_ids=tuple(merged))
    return config


def parse_model_config(
    raw: Mapping[str, Any],
    *,
    num_visible_tokens: int | None = None,
    ignore_keys: tuple[str, ...] = (),
) -> ModelConfig:
    """Turn a parsed config.json into a `ModelConfig`.

    num_visible_tokens overrides the window of the sliding layers (settings.md; query included).
    ignore_keys are keys of config.json that the user vouches for.
    Raises ConfigError for an unknown key, a missing one, or a value this engine cannot serve.
    """
    if num_visible_tokens is not None and num_visible_tokens < 1:
        raise ConfigError(f"--num-visible-tokens must be at least 1, not {num_visible_tokens}")
    reader = ConfigReader(raw, where="config.json")
    for key in ignore_keys:
        reader.skip(key)
    architecture = _architecture(reader)
    is_native = "layer_types" in raw or "mlp_layer_types" in raw
    _require_known_constants(reader)
    layers, mtp_layer = read_layers(
        reader, is_native=is_native, num_visible_tokens=num_visible_tokens
    )
    config = ModelConfig(
        architecture=architecture,
        model_type=reader.take("model_type", str),
        is_native=is_native,
        vocab_size=reader.take("vocab_size", int),
        hidden_size=reader.take("hidden_size", int),
        layers=layers,
        mtp_layer=mtp_layer,
        num_mtp_layers=reader.take("num_nextn_predict_layers", int, default=None),
        norm_eps=float(
            reader.take("rms_norm_eps", float)
            if is_native
            else reader.take("layernorm_epsilon", float, default=1e-6)
        ),
        router=_router(reader, layers),
        max_position_embeddings=reader.take("max_position_embeddings", int),
        qkv_chunks=_qkv_chunks(reader, raw, layers),
        quantization=_quantization(reader),
        dtype=reader.take("dtype", str, default="bfloat16"),
        eos_token_ids=_token_ids(reader.take_any("eos_token_id", default=None), "eos_token_id"),
        pad_token_id=reader.take("pad_token_id", int, default=None),
        media={key: reader.take_any(key) for key in _MEDIA_KEYS if key in raw},
    )
    reader.finish(BOILERPLATE, remedy="--ignore-config-key")
    return config


def _architecture(reader: ConfigReader) -> str:
    names = reader.take("architectures", list, default=None) or ["MiMoV2ForCausalLM"]
    if len(names) != 1 or names[0] not in _ARCHITECTURES:
        raise ConfigError(f"architectures is {names}; this engine serves {list(_ARCHITECTURES)}")
    return str(names[0])


def _require_known_constants(reader: ConfigReader) -> None:
    """Keys that name a variant of the mathematics: only the family's own value can be served."""
    reader.require("hidden_act", "silu", default="silu")
    reader.require("scoring_func", "sigmoid", default="sigmoid")
    reader.require("topk_method", "noaux_tc", default="noaux_tc")
    reader.require("n_group", 1, default=1)
    reader.require("topk_group", 1, default=1)
    reader.require("attention_bias", False, default=False)
    reader.require("tie_word_embeddings", False, default=False)
    reader.require("n_shared_experts", None, default=None)
    router_dtype = reader.take("moe_router_dtype", str, default="float32")
    if router_dtype not in ("float32", "bfloat16"):
        raise ConfigError(f"moe_router_dtype is {router_dtype!r}, not float32 or bfloat16")


def _router(reader: ConfigReader, layers: tuple[LayerSpec, ...]) -> RouterSpec | None:
    num_experts = reader.take("n_routed_experts", int, default=None)
    top_k = reader.take("num_experts_per_tok", int, default=None)
    norm = reader.take("norm_topk_prob", bool, default=True)
    scaling = reader.take("routed_scaling_factor", float, default=None)
    if not any(spec.mlp is MlpKind.MOE for spec in layers):
        return None
    if num_experts is None or top_k is None or not 1 <= top_k <= num_experts:
        raise ConfigError(
            f"MoE layers need n_routed_experts and num_experts_per_tok; got {num_experts}, {top_k}"
        )
    return RouterSpec(
        num_experts=num_experts,
        num_experts_per_tok=top_k,
        norm_topk_prob=norm,
        scaling_factor=1.0 if scaling is None else float(scaling),
    )


def _qkv_chunks(
    reader: ConfigReader, raw: Mapping[str, Any], layers: tuple[LayerSpec, ...]
) -> int | None:
    reader.take_any("attention_projection_layout", default=None)
    chunks = get_mimo_v2_fused_qkv_expected_tp_size(raw)
    if chunks is None:
        return None
    for index, spec in enumerate(layers):
        if spec.num_heads % chunks or spec.num_kv_heads % chunks:
            raise ConfigError(
                f"layer {index} has {spec.num_heads} query and {spec.num_kv_heads} KV heads, which "
                f"cannot be cut into the {chunks} chunks of a fused qkv tensor"
            )
    return chunks


def _quantization(reader: ConfigReader) -> QuantizationConfig | None:
    raw = reader.take("quantization_config", dict, default=None)
    if raw is None:
        return None
    inner = ConfigReader(raw, where="quantization_config")
    inner.require("quant_method", "fp8")
    inner.require("fmt", "e4m3", default="e4m3")
    inner.require("activation_scheme", "dynamic", default="dynamic")
    block = inner.take("weight_block_size", list)
    if block != [128, 128]:
        raise ConfigError(f"weight_block_size is {block}; the family uses [128, 128]")
    store = inner.take("store_dtype", str, default="fp8")
    if store not in ("fp8", "mxfp4"):
        raise ConfigError(f"store_dtype is {store!r}, not fp8 or mxfp4")
    group = inner.take("mxfp4_block_size", int, default=32)
    if group != 32:
        raise ConfigError(f"mxfp4_block_size is {group}; the family uses 32")
    ignored = inner.take("ignored_layers", list, default=[])
    inner.finish({}, remedy=None)
    return QuantizationConfig(
        block_size=128,
        experts_are_mxfp4=store == "mxfp4",
        mxfp4_group_size=group,
        ignored_layers=tuple(str(name) for name in ignored),
    )


def _token_ids(value: Any, key: str) -> tuple[int, ...]:
    if value is None:
        return ()
    values = value if isinstance(value, list) else [value]
    if any(not isinstance(item, int) or isinstance(item, bool) for item in values):
        raise ConfigError(f"{key} must be an id or a list of ids, not {value!r}")
    return tuple(values)
