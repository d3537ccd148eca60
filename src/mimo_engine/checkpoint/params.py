"""Every parameter of the text model on one rank, as data: shape, how it is stored, how it is cut.

This list is what the model asks for and what the loader fills; `names.py` says which tensors of the
files fill it. Nothing here knows file layouts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from mimo_engine.config.model import LayerSpec, MlpKind, ModelConfig
from mimo_engine.distributed.plan import SINGLE_RANK, ParallelPlan
from mimo_engine.distributed.shard import Cut, cut_blocks, cut_heads

__all__ = [
    "ParamPart",
    "ParamSpec",
    "Storage",
    "attention_specs",
    "layer_of",
    "parameter_specs",
]


class Storage(StrEnum):
    """How a parameter may be stored and is held."""

    LINEAR = "linear"
    """A matmul operand: plain, FP8 or, in experts, MXFP4."""
    PLAIN = "plain"
    """A plain float tensor, held in the model's dtype."""
    FLOAT32 = "float32"
    """A plain float tensor, held in float32 whatever the model's dtype."""
    FLOAT32_ONLY = "float32_only"
    """As FLOAT32, and refused in any other stored type: rounding it changes the model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamPart:
    """Consecutive rows of a parameter that come from one canonical tensor (of each expert).

    Canonical: as the split layout has it, q, k, v, gate, up and down each a tensor of its own.
    """

    name: str
    """q, k, v, gate, up; empty when the parameter is one tensor."""
    full_shape: tuple[int, ...]
    """Shape of the whole canonical tensor."""
    cut: Cut | None
    """This rank's share of it; None: all."""
    row: int
    """First row in the parameter."""

    @property
    def local_shape(self) -> tuple[int, ...]:
        if self.cut is None:
            return self.full_shape
        sizes = list(self.full_shape)
        sizes[self.cut.dim] = self.cut.size
        return tuple(sizes)


@dataclass(frozen=True, kw_only=True, slots=True)
class ParamSpec:
    """One parameter on one rank."""

    parts: tuple[ParamPart, ...]
    storage: Storage
    num_experts: int | None = None
    """Experts stacked in the first dimension; None: not an expert weight."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Local shape, padding included."""
        stack = () if self.num_experts is None else (self.num_experts,)
        num_rows = sum(part.local_shape[0] for part in self.parts)
        return (*stack, num_rows, *self.parts[0].local_shape[1:])


def parameter_specs(
    config: ModelConfig, plan: ParallelPlan = SINGLE_RANK, *, num_mtp_layers: int = 0
) -> dict[str, ParamSpec]:
    """All parameters of one rank by name, in the order of the forward pass."""
    hidden = config.hidden_size
    vocabulary = cut_blocks(0, plan.vocabulary(config.vocab_size), plan.tp_rank)
    specs = {"embed_tokens.weight": _single((config.vocab_size, hidden), Storage.PLAIN, vocabulary)}
    for index, layer in enumerate(config.layers):
        specs |= _prefixed(f"layers.{index}.", _decoder_layer(config, layer, plan))
    specs["norm.weight"] = _single((hidden,), Storage.PLAIN)
    specs["lm_head.weight"] = _single((config.vocab_size, hidden), Storage.PLAIN, vocabulary)
    for index in range(num_mtp_layers):
        specs |= _prefixed(f"mtp.layers.{index}.", _mtp_layer(config, plan))
    return specs


def layer_of(config: ModelConfig, parameter: str) -> LayerSpec:
    """The layer that a parameter of this name belongs to."""
    if parameter.startswith("mtp."):
        return config.mtp_layer
    return config.layers[int(parameter.split(".")[1])]


def _decoder_layer(
    config: ModelConfig, layer: LayerSpec, plan: ParallelPlan
) -> dict[str, ParamSpec]:
    norm = _single((config.hidden_size,), Storage.PLAIN)
    mlp = _moe if layer.mlp is MlpKind.MOE else _gated_mlp
    return {
        "input_layernorm.weight": norm,
        **_prefixed("self_attn.", attention_specs(layer, config.hidden_size, plan)),
        "post_attention_layernorm.weight": norm,
        **_prefixed("mlp.", mlp(config, layer, plan)),
    }


def _mtp_layer(config: ModelConfig, plan: ParallelPlan) -> dict[str, ParamSpec]:
    hidden = config.hidden_size
    norm = _single((hidden,), Storage.PLAIN)
    return {
        "enorm.weight": norm,
        "hnorm.weight": norm,
        "eh_proj.weight": _single((hidden, 2 * hidden), Storage.PLAIN),
        "input_layernorm.weight": norm,
        **_prefixed("self_attn.", attention_specs(config.mtp_layer, hidden, plan)),
        "pre_mlp_layernorm.weight": norm,
        **_prefixed("mlp.", _gated_mlp(config, config.mtp_layer, plan)),
        "final_layernorm.weight": norm,
    }


def attention_specs(layer: LayerSpec, hidden: int, plan: ParallelPlan) -> dict[str, ParamSpec]:
    """The parameters of one attention layer, by their name within `self_attn`."""
    heads = plan.heads(layer)
    query_heads, kv_heads = heads.query_heads(plan.tp_rank), heads.kv_heads(plan.tp_rank)
    qk, v = layer.qk_head_dim, layer.v_head_dim
    specs = {
        "qkv_proj.weight": _stacked_rows(
            {
                "q": ((layer.num_heads * qk, hidden), cut_heads(0, query_heads, qk)),
                "k": ((layer.num_kv_heads * qk, hidden), cut_heads(0, kv_heads, qk)),
                "v": ((layer.num_kv_heads * v, hidden), cut_heads(0, kv_heads, v)),
            }
        ),
        "o_proj.weight": _single(
            (hidden, layer.num_heads * v), Storage.LINEAR, cut_heads(1, query_heads, v)
        ),
    }
    if layer.has_sink:
        sinks = cut_heads(0, query_heads, 1)
        specs["attention_sink_bias"] = _single((layer.num_heads,), Storage.FLOAT32, sinks)
    return specs


def _moe(config: ModelConfig, layer: LayerSpec, plan: ParallelPlan) -> dict[str, ParamSpec]:
    assert config.router is not None
    num_experts = config.router.num_experts
    experts = _gated_mlp(config, layer, plan, num_experts=num_experts)
    return {
        "gate.weight": _single((num_experts, config.hidden_size), Storage.FLOAT32),
        "gate.e_score_correction_bias": _single((num_experts,), Storage.FLOAT32_ONLY),
        **_prefixed("experts.", experts),
    }


def _gated_mlp(
    config: ModelConfig, layer: LayerSpec, plan: ParallelPlan, *, num_experts: int | None = None
) -> dict[str, ParamSpec]:
    hidden, width = config.hidden_size, layer.intermediate_size
    columns = plan.mlp_columns(width)
    rows = cut_blocks(0, columns, plan.tp_rank)
    return {
        "gate_up_proj.weight": _stacked_rows(
            {"gate": ((width, hidden), rows), "up": ((width, hidden), rows)},
            num_experts=num_experts,
        ),
        "down_proj.weight": _single(
            (hidden, width),
            Storage.LINEAR,
            cut_blocks(1, columns, plan.tp_rank),
            num_experts=num_experts,
        ),
    }


def _single(
    full_shape: tuple[int, ...],
    storage: Storage,
    cut: Cut | None = None,
    *,
    num_experts: int | None = None,
) -> ParamSpec:
    part = ParamPart(name="", full_shape=full_shape, cut=cut, row=0)
    return ParamSpec(parts=(part,), storage=storage, num_experts=num_experts)


def _stacked_rows(
    parts: dict[str, tuple[tuple[int, int], Cut]], *, num_experts: int | None = None
) -> ParamSpec:
    row, stacked = 0, []
    for name, (full_shape, cut) in parts.items():
        assert cut.dim == 0
        stacked.append(ParamPart(name=name, full_shape=full_shape, cut=cut, row=row))
        row += cut.size
    return ParamSpec(parts=tuple(stacked), storage=Storage.LINEAR, num_experts=num_experts)


def _prefixed(prefix: str, specs: dict[str, ParamSpec]) -> dict[str, ParamSpec]:
    return {prefix + name: spec for name, spec in specs.items()}
