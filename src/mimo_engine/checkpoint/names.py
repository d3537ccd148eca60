"""The only table between the names of the checkpoint's tensors and ours, read in both directions.

Ours are the hub's without `model.`, with what one matmul reads stacked into one parameter:

    qkv_proj            q_proj, k_proj, v_proj (split) or qkv_proj (fused)
    gate_up_proj        gate_proj, up_proj
    experts.*_proj      experts.{e}.*_proj of every expert

A quantised tensor has its scales beside it, under its own name and a suffix. Tensors that are no
parameter of the text model must be listed in IGNORED, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mimo_engine.checkpoint.params import ParamPart, ParamSpec
from mimo_engine.config.model import ModelConfig

__all__ = [
    "FP8_SCALE_SUFFIX",
    "IGNORED",
    "MTP_PREFIX",
    "MXFP4_SCALE_SUFFIX",
    "IgnoredTensors",
    "Placement",
    "ignored_reason",
    "mtp_layer_index",
    "placements",
    "tensor_name",
]

FP8_SCALE_SUFFIX = "_scale_inv"
MXFP4_SCALE_SUFFIX = "_scale"
MTP_PREFIX = "model.mtp."

# Our name within a layer -> part -> the hub's name within a layer.
_STACKED: Mapping[str, Mapping[str, str]] = {
    "self_attn.qkv_proj.weight": {
        "": "self_attn.qkv_proj.weight",
        "q": "self_attn.q_proj.weight",
        "k": "self_attn.k_proj.weight",
        "v": "self_attn.v_proj.weight",
    },
    "mlp.gate_up_proj.weight": {
        "gate": "mlp.gate_proj.weight",
        "up": "mlp.up_proj.weight",
    },
    "mlp.experts.gate_up_proj.weight": {
        "gate": "mlp.experts.{expert}.gate_proj.weight",
        "up": "mlp.experts.{expert}.up_proj.weight",
    },
    "mlp.experts.down_proj.weight": {"": "mlp.experts.{expert}.down_proj.weight"},
}
_LAYER = re.compile(r"((?:mtp\.)?layers\.\d+\.)(.+)")


@dataclass(frozen=True, kw_only=True, slots=True)
class IgnoredTensors:
    """Tensors that the text model does not read, and why."""

    pattern: re.Pattern[str]
    media_key: str
    """The tensors are expected only where config.json has this key."""
    reason: str


IGNORED = (
    IgnoredTensors(
        pattern=re.compile(
            r"visual\.(patch_embed\.proj\.(weight|bias)"
            r"|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)\.(weight|bias)"
            r"|blocks\.\d+\.attn\.sinks"
            r"|merger\.(ln_q|mlp\.\d+)\.(weight|bias))"
        ),
        media_key="vision_config",
        reason="vision tower; only text is served",
    ),
    IgnoredTensors(
        pattern=re.compile(
            r"audio_encoder\.(input_local_transformer\.(layers\.\d+\.[a-z_.]+|norm)"
            r"|projection\.mlp\.\d+)\.(weight|bias)"
        ),
        media_key="audio_config",
        reason="audio tower; only text is served",
    ),
    IgnoredTensors(
        pattern=re.compile(r"speech_embeddings\.\d+\.weight"),
        media_key="audio_config",
        reason="audio code embeddings; only text is served",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Placement:
    """Where one tensor of the files goes."""

    parameter: str
    part: ParamPart
    expert: int | None


def tensor_name(parameter: str, part: str = "", expert: int | None = None) -> str:
    """The checkpoint's name of one part of our `parameter`."""
    match = _LAYER.fullmatch(parameter)
    if match is None:
        return parameter if parameter == "lm_head.weight" else f"model.{parameter}"
    layer, within = match.groups()
    if within in _STACKED:
        within = _STACKED[within][part].format(expert=expert)
    return f"model.{layer}{within}"


def placements(specs: Mapping[str, ParamSpec]) -> Iterator[tuple[str, Placement]]:
    """(tensor name, place) of every tensor that fills `specs`, scales left out."""
    for parameter, spec in specs.items():
        experts = (None,) if spec.num_experts is None else range(spec.num_experts)
        for expert in experts:
            for part in spec.parts:
                name = tensor_name(parameter, part.name, expert)
                yield name, Placement(parameter=parameter, part=part, expert=expert)


def mtp_layer_index(tensor: str) -> int | None:
    """N of `model.mtp.layers.N.*`, None for any other name."""
    match = re.match(r"model\.mtp\.layers\.(\d+)\.", tensor)
    return int(match.group(1)) if match else None


def ignored_reason(tensor: str, config: ModelConfig) -> str | None:
    """Why a tensor outside the text model may be skipped; None when it may not."""
    for ignored in IGNORED:
        if ignored.media_key in config.media and ignored.pattern.fullmatch(tensor):
            return ignored.reason
    return None
