"""What the model is: one `ModelConfig`, and one `LayerSpec` a layer, made once from config.json.

Two dialects are read. *hub* is what Xiaomi publishes (`hybrid_layer_pattern`, `swa_*`,
`layernorm_epsilon`); *native* is what transformers writes for `mimo_v2_flash` (`layer_types`,
`mlp_layer_types`, `rope_parameters` by kind, `rms_norm_eps`). No other file reads config.json, and
no other file holds a default for a missing key.

Every key is either consumed here or listed in `BOILERPLATE` with the reason; any other key is an
error, because a key that is skipped is a model that is silently wrong.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from mimo_engine.config.reader import ConfigReader
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


class AttentionKind(StrEnum):
    """Full layers see every earlier token; sliding layers see the last `num_visible_tokens`."""

    FULL = "full"
    SLIDING = "sliding"


class MlpKind(StrEnum):
    DENSE = "dense"
    MOE = "moe"


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """Everything that distinguishes one decoder layer. The only description of a layer there is."""

    attention: AttentionKind
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rotary_dim: int
    """The first `rotary_dim` of the `qk_head_dim` dims rotate, halves paired (j with j + dim/2)."""
    rope_theta: float
    num_visible_tokens: int | None
    """Keys a query sees, itself included; None: all earlier ones. Position p sees
    p - num_visible_tokens + 1 ... p."""
    has_sink: bool
    """One learned logit a query head in the softmax denominator, with no value."""
    value_scale: float
    """V is multiplied by it before it is cached."""
    mlp: MlpKind
    intermediate_size: int
    """Width of the dense MLP, or of one expert."""

    @property
    def is_sliding(self) -> bool:
        return self.attention is AttentionKind.SLIDING

    @property
    def kv_elements_per_token(self) -> int:
        """Cached elements of one token in this layer: K and V of every KV head."""
        return self.num_kv_heads * (self.qk_head_dim + self.v_head_dim)


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
    """Geometry of every MTP layer. How many there are is read from the tensor names (mtp.md 5.1)."""
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
    raw = _read_json(model_dir / "config.json")
    config = parse_model_config(
        raw, num_visible_tokens=num_visible_tokens, ignore_keys=ignore_keys
    )
    generation_path = model_dir / "generation_config.json"
    if generation_path.exists():
        extra = _token_ids(_read_json(generation_path).get("eos_token_id"), "eos_token_id")
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
    kinds = _native_layers(reader) if is_native else _hub_layers(reader)
    layers, mtp_layer = _layer_specs(reader, kinds, is_native, num_visible_tokens)
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


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: is this a checkpoint directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} must hold a JSON object")
    return value


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


def _hub_layers(reader: ConfigReader) -> list[tuple[AttentionKind, MlpKind]]:
    """Layer kinds in the hub dialect (defaults: text.md 1.2)."""
    num_layers = reader.take("num_hidden_layers", int)
    pattern = reader.take("hybrid_layer_pattern", list, default=None) or [0] * num_layers
    frequency = reader.take_any("moe_layer_freq", default=None)
    if frequency is None:
        moe = [0] * num_layers
    elif isinstance(frequency, int) and not isinstance(frequency, bool) and frequency > 0:
        moe = [int(i % frequency == 0) for i in range(num_layers)]
    else:
        moe = frequency
    for key, values in (("hybrid_layer_pattern", pattern), ("moe_layer_freq", moe)):
        if not isinstance(values, list) or len(values) != num_layers:
            raise ConfigError(f"{key} must list one value for each of the {num_layers} layers")
        if any(value not in (0, 1) for value in values):
            raise ConfigError(f"{key} may hold 0 and 1 only")
    return [
        (
            AttentionKind.SLIDING if slides else AttentionKind.FULL,
            MlpKind.MOE if sparse else MlpKind.DENSE,
        )
        for slides, sparse in zip(pattern, moe, strict=True)
    ]


def _native_layers(reader: ConfigReader) -> list[tuple[AttentionKind, MlpKind]]:
    """Layer kinds in the dialect of transformers 5.23."""
    num_layers = reader.take("num_hidden_layers", int)
    attention = {"full_attention": AttentionKind.FULL, "sliding_attention": AttentionKind.SLIDING}
    mlp = {"dense": MlpKind.DENSE, "sparse": MlpKind.MOE}
    layer_types = reader.take("layer_types", list)
    mlp_types = reader.take("mlp_layer_types", list)
    for key, values, known in (
        ("layer_types", layer_types, attention),
        ("mlp_layer_types", mlp_types, mlp),
    ):
        if len(values) != num_layers or any(value not in known for value in values):
            raise ConfigError(
                f"{key} must list one of {sorted(known)} for each of the {num_layers} layers"
            )
    return [(attention[a], mlp[m]) for a, m in zip(layer_types, mlp_types, strict=True)]


def _layer_specs(
    reader: ConfigReader,
    kinds: list[tuple[AttentionKind, MlpKind]],
    is_native: bool,
    num_visible_tokens: int | None,
) -> tuple[tuple[LayerSpec, ...], LayerSpec]:
    """The spec of every layer, and that of the MTP layers (sliding attention, dense MLP)."""
    attention = _attention_geometry(reader, is_native, num_visible_tokens)
    dense_size = reader.take("intermediate_size", int)
    expert_size = reader.take("moe_intermediate_size", int, default=None)
    if expert_size is None and any(mlp is MlpKind.MOE for _, mlp in kinds):
        raise ConfigError("config.json has MoE layers but no moe_intermediate_size")

    def spec(kind: AttentionKind, mlp: MlpKind) -> LayerSpec:
        size = expert_size if mlp is MlpKind.MOE else dense_size
        return LayerSpec(
            attention=kind, mlp=mlp, intermediate_size=int(size or 0), **attention[kind]
        )

    return tuple(spec(*kind) for kind in kinds), spec(AttentionKind.SLIDING, MlpKind.DENSE)


def _attention_geometry(
    reader: ConfigReader, is_native: bool, num_visible_tokens: int | None
) -> dict[AttentionKind, dict[str, Any]]:
    """Per attention kind, the attention fields of its LayerSpec."""
    num_heads = reader.take("num_attention_heads", int)
    num_kv_heads = reader.take("num_key_value_heads", int)
    hidden_size = reader.peek("hidden_size", int)
    head_dim = reader.take("head_dim", int, default=None) or hidden_size // num_heads
    v_head_dim = reader.take("v_head_dim", int, default=None) or head_dim
    value_scale = reader.take("attention_value_scale", float, default=None)
    window = reader.take("sliding_window", int, default=None)
    window_size = reader.take("sliding_window_size", int, default=None)
    if window is not None and window_size is not None and window != window_size:
        raise ConfigError(f"sliding_window is {window} but sliding_window_size is {window_size}")
    thetas, rotary_factors = _rope(reader, is_native)
    if is_native:
        # The native class hard-codes twice the KV heads and a sink for sliding layers (text.md 3.2).
        sliding = (num_heads, 2 * num_kv_heads, head_dim, v_head_dim)
        sinks = {AttentionKind.FULL: False, AttentionKind.SLIDING: True}
    else:
        swa_head_dim = reader.take("swa_head_dim", int, default=head_dim)
        sliding = (
            reader.take("swa_num_attention_heads", int, default=num_heads),
            reader.take("swa_num_key_value_heads", int, default=num_kv_heads),
            swa_head_dim,
            reader.take("swa_v_head_dim", int, default=swa_head_dim),
        )
        sinks = {
            AttentionKind.FULL: reader.take("add_full_attention_sink_bias", bool, default=False),
            AttentionKind.SLIDING: reader.take("add_swa_attention_sink_bias", bool, default=False),
        }
    visible = num_visible_tokens or window or window_size
    if visible is None or visible < 1:
        raise ConfigError(
            f"config.json gives no usable sliding_window ({window}): pass --num-visible-tokens"
        )
    geometry: dict[AttentionKind, dict[str, Any]] = {}
    for kind, (heads, kv_heads, qk_dim, v_dim) in (
        (AttentionKind.FULL, (num_heads, num_kv_heads, head_dim, v_head_dim)),
        (AttentionKind.SLIDING, sliding),
    ):
        if heads % kv_heads:
            raise ConfigError(
                f"{heads} query heads are not a multiple of {kv_heads} KV heads ({kind} layers)"
            )
        rotary_dim = int(qk_dim * rotary_factors[kind])
        if rotary_dim % 2:
            raise ConfigError(f"rotary width {rotary_dim} of {kind} layers is odd")
        geometry[kind] = {
            "num_heads": heads,
            "num_kv_heads": kv_heads,
            "qk_head_dim": qk_dim,
            "v_head_dim": v_dim,
            "rotary_dim": rotary_dim,
            "rope_theta": thetas[kind],
            "num_visible_tokens": visible if kind is AttentionKind.SLIDING else None,
            "has_sink": sinks[kind],
            "value_scale": 1.0 if value_scale is None else float(value_scale),
        }
    return geometry


def _rope(
    reader: ConfigReader, is_native: bool
) -> tuple[dict[AttentionKind, float], dict[AttentionKind, float]]:
    """(theta, rotated share of the head) per attention kind; only unscaled rope is served."""
    full, sliding = AttentionKind.FULL, AttentionKind.SLIDING
    if is_native:
        by_kind = ConfigReader(reader.take("rope_parameters", dict), where="rope_parameters")
        thetas, factors = {}, {}
        for kind, key in ((full, "full_attention"), (sliding, "sliding_attention")):
            inner = ConfigReader(by_kind.take(key, dict), where=f"rope_parameters.{key}")
            inner.require("rope_type", "default", default="default")
            thetas[kind] = float(inner.take("rope_theta", float))
            factors[kind] = float(inner.take("partial_rotary_factor", float, default=1.0))
            inner.finish({}, remedy=None)
        by_kind.finish({}, remedy=None)
        return thetas, factors
    theta = reader.take("rope_theta", float, default=None)
    factor = reader.take("partial_rotary_factor", float, default=None)
    for key in ("rope_scaling", "rope_parameters"):
        inner_raw = reader.take(key, dict, default=None)
        if inner_raw is None:
            continue
        inner = ConfigReader(inner_raw, where=key)
        inner.require("rope_type", "default", default="default")
        inner.require("type", "default", default="default")
        inner_theta = inner.take("rope_theta", float, default=theta)
        inner_factor = inner.take("partial_rotary_factor", float, default=factor)
        if theta not in (None, inner_theta) or factor not in (None, inner_factor):
            raise ConfigError(f"{key} contradicts rope_theta or partial_rotary_factor")
        theta, factor = inner_theta, inner_factor
        inner.finish({}, remedy=None)
    if theta is None:
        raise ConfigError("config.json has no rope_theta, at top level or in rope_parameters")
    swa_theta = reader.take("swa_rope_theta", float, default=theta)
    share = 1.0 if factor is None else float(factor)
    return {full: float(theta), sliding: float(swa_theta)}, {full: share, sliding: share}


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
