"""What each layer is: a `LayerSpec` a layer, in both dialects of config.json.

The hub writes 0 and 1 lists and `swa_*` keys; transformers writes `layer_types`, `mlp_layer_types`
and rope parameters by kind (text.md 1). `config/model.py` calls this and describes the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from mimo_engine.config.reader import ConfigReader
from mimo_engine.errors import ConfigError

__all__ = ["AttentionKind", "LayerSpec", "MlpKind", "read_layers"]


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


def read_layers(
    reader: ConfigReader, *, is_native: bool, num_visible_tokens: int | None
) -> tuple[tuple[LayerSpec, ...], LayerSpec]:
    """The spec of every layer, and that of the MTP layers (sliding attention, dense MLP).

    num_visible_tokens overrides the window. Raises ConfigError.
    """
    kinds = _native_layers(reader) if is_native else _hub_layers(reader)
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
        moe = list(frequency) if isinstance(frequency, list) else []
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


def _attention_geometry(
    reader: ConfigReader, is_native: bool, num_visible_tokens: int | None
) -> dict[AttentionKind, dict[str, Any]]:
    """Per attention kind, the attention fields of its LayerSpec."""
    num_heads = reader.take("num_attention_heads", int)
    num_kv_heads = reader.take("num_key_value_heads", int)
    hidden_size = reader.take("hidden_size", int)
    head_dim = reader.take("head_dim", int, default=None) or hidden_size // num_heads
    v_head_dim = reader.take("v_head_dim", int, default=None) or head_dim
    value_scale = reader.take("attention_value_scale", float, default=None)
    window = reader.take("sliding_window", int, default=None)
    window_size = reader.take("sliding_window_size", int, default=None)
    if window is not None and window_size is not None and window != window_size:
        raise ConfigError(f"sliding_window is {window} but sliding_window_size is {window_size}")
    thetas, rotary_factors = _rope(reader, is_native)
    if is_native:
        # The native class hard-codes twice the KV heads and a sink for sliding layers.
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
