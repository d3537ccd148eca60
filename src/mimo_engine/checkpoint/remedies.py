"""What to say about a tensor that does not fit: the cause where it can be told, and the remedy.

Sentences for `verify.py`, and the error that carries them. Each names what the user can do: mend
config.json, or get the file again.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from mimo_engine.checkpoint.formats import StoredFormat
from mimo_engine.checkpoint.index import TensorInfo
from mimo_engine.checkpoint.names import (
    FP8_SCALE_SUFFIX,
    MTP_PREFIX,
    MXFP4_SCALE_SUFFIX,
    Placement,
)
from mimo_engine.checkpoint.params import ParamSpec, Storage, layer_of
from mimo_engine.checkpoint.qkv_layout import fused_rows
from mimo_engine.config.model import LayerSpec, ModelConfig, QuantizationConfig
from mimo_engine.errors import CheckpointError

__all__ = [
    "AGAIN",
    "format_problem",
    "missing_remedy",
    "refuse",
    "shape_remedy",
    "unknown_remedy",
]

AGAIN = "download the checkpoint again"
_PATTERN = "restore the official config.json (hybrid_layer_pattern)"
_MAX_PROBLEMS_SHOWN = 8


def refuse(model_dir: Path, problems: Sequence[str]) -> None:
    """Raise CheckpointError with the first of `problems`; nothing when there are none."""
    if not problems:
        return
    shown = list(problems[:_MAX_PROBLEMS_SHOWN])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more: `mimo-engine check` lists them")
    raise CheckpointError("\n  ".join([f"{model_dir} cannot be loaded:", *shown]))


def missing_remedy(placement: Placement, config: ModelConfig) -> str:
    """After "tensor X is missing:"."""
    parameter = placement.parameter
    if not parameter.endswith("attention_sink_bias"):
        return AGAIN
    layer = ".".join(parameter.split(".")[:-2])
    kind = layer_of(config, parameter).attention
    return f"{layer} is {kind} by config.json and needs a sink; {_PATTERN} or the file"


def shape_remedy(info: TensorInfo, placement: Placement, config: ModelConfig) -> str:
    """After "tensor X is [a, b], not [c, d]:"."""
    parameter = placement.parameter
    if parameter in ("embed_tokens.weight", "lm_head.weight"):
        return (
            f"config.json says vocab_size {config.vocab_size} and hidden_size "
            f"{config.hidden_size}; use the config.json of this checkpoint"
        )
    if parameter.endswith("qkv_proj.weight") and not parameter.startswith("mtp."):
        mine = layer_of(config, parameter)
        for other in config.layers:
            rows = _qkv_rows(other, placement.part.name)
            if other.attention is not mine.attention and info.shape[:1] == (rows,):
                return (
                    f"that is the shape of a {other.attention} layer, but config.json makes layer "
                    f"{parameter.split('.')[1]} {mine.attention}; {_PATTERN}"
                )
    return f"config.json or the file belongs to another checkpoint; {AGAIN}"


def unknown_remedy(tensor: str, config: ModelConfig) -> str:
    """After "tensor X", one that fills nothing."""
    match = re.match(r"model\.layers\.(\d+)\.(.+)", tensor)
    if match and int(match.group(1)) >= config.num_layers:
        return (
            f"is beyond the {config.num_layers} layers of config.json: restore the official "
            "config.json (num_hidden_layers)"
        )
    if match and match.group(2) == "self_attn.attention_sink_bias":
        kind = config.layers[int(match.group(1))].attention
        return (
            f"is a sink, but config.json makes layer {match.group(1)} {kind}, without one: "
            f"{_PATTERN}"
        )
    if tensor.endswith((FP8_SCALE_SUFFIX, MXFP4_SCALE_SUFFIX)):
        return f"is a scale without a quantised weight: {AGAIN}"
    if tensor.startswith(MTP_PREFIX):
        return f"is no tensor of a draft layer: {AGAIN}"
    return (
        "fills no parameter of this model and is not among the tensors known to be ignored: "
        "remove it from the checkpoint, or restore the official config.json"
    )


def format_problem(
    info: TensorInfo,
    stored: StoredFormat | None,
    spec: ParamSpec,
    quantization: QuantizationConfig | None,
) -> str | None:
    """After "tensor X is DTYPE,": why it cannot fill `spec`; None when it can."""
    mxfp4_experts = quantization is not None and quantization.experts_are_mxfp4
    if stored is None:
        return f"which no weight of this family is: {AGAIN}"
    if spec.num_experts is not None and mxfp4_experts and stored is not StoredFormat.MXFP4:
        return (
            "but quantization_config.store_dtype says that experts are mxfp4: restore the official "
            "config.json or tensors"
        )
    if stored is StoredFormat.PLAIN:
        if spec.storage is Storage.FLOAT32_ONLY and info.dtype is not torch.float32:
            return (
                "but must be float32 (rounding it changes which experts are chosen): restore the "
                "official tensor"
            )
        return None
    if spec.storage is not Storage.LINEAR:
        return f"but this tensor is never quantised: {AGAIN}"
    if quantization is None:
        return (
            "that is quantised, but config.json has no quantization_config: restore the official "
            "config.json"
        )
    if stored is StoredFormat.MXFP4 and spec.num_experts is None:
        return f"but only routed experts are MXFP4: {AGAIN}"
    if stored is StoredFormat.MXFP4 and not mxfp4_experts:
        return (
            "that is MXFP4, but quantization_config has no store_dtype 'mxfp4': restore the "
            "official config.json"
        )
    return None


def _qkv_rows(layer: LayerSpec, part: str) -> int:
    """Rows of a stored q, k or v tensor of this kind of layer, or (empty part) of a fused one."""
    return {
        "": fused_rows(layer),
        "q": layer.num_heads * layer.qk_head_dim,
        "k": layer.num_kv_heads * layer.qk_head_dim,
        "v": layer.num_kv_heads * layer.v_head_dim,
    }[part]
