"""The only table between the names of the checkpoint's tensors and ours, read in both directions.

Ours are the hub's without `model.`, with what one matmul reads stacked into one parameter:

    qkv_proj            q_proj, k_proj, v_proj (split) or qkv_proj (fused)
    gate_up_proj        gate_proj, up_proj
    experts.*_proj      experts.{e}.*_proj of every expert

A quantised tensor has its scales beside it, under its own name and a suffix. A tower's parameters
have their tensors' names, without the tower's own. Tensors that fill nothing must be listed in
IGNORED (towers, when only text is served) or IGNORED_AUDIO_TOKENIZER, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mimo_engine.checkpoint.params import ParamPart, ParamSpec
from mimo_engine.checkpoint.tower_params import Tower, TowerParam
from mimo_engine.config.model import ModelConfig

__all__ = [
    "FP8_SCALE_SUFFIX",
    "IGNORED",
    "IGNORED_AUDIO_TOKENIZER",
    "MTP_PREFIX",
    "MXFP4_SCALE_SUFFIX",
    "IgnoredTensors",
    "Placement",
    "ignored_reason",
    "mtp_layer_index",
    "placements",
    "tensor_name",
    "tower_of",
    "tower_tensor_name",
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
    """Tensors that are not read, and why."""

    pattern: re.Pattern[str]
    reason: str
    media_key: str = ""
    """Of IGNORED: the tensors are expected only where config.json has this key."""


IGNORED = (
    IgnoredTensors(
        pattern=re.compile(
            r"visual\.(patch_embed\.proj\.weight"
            r"|blocks\.\d+\.norm[12]\.weight"
            r"|blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(gate|up|down)_proj)\.(weight|bias)"
            r"|blocks\.\d+\.attn\.sinks"
            r"|merger\.(ln_q|mlp\.[02])\.weight)"
        ),
        media_key="vision_config",
        reason="vision tower; only text is served",
    ),
    IgnoredTensors(
        pattern=re.compile(
            r"audio_encoder\.(input_local_transformer\.("
            r"layers\.\d+\.((input|post_attention)_layernorm\.weight"
            r"|self_attn\.([qkv]_proj\.(weight|bias)|o_proj\.weight)"
            r"|mlp\.(gate|up|down)_proj\.weight)"
            r"|norm\.weight)"
            r"|projection\.mlp\.[02]\.weight)"
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

IGNORED_AUDIO_TOKENIZER = (
    IgnoredTensors(
        pattern=re.compile(
            r"encoder\.quantizer\.vq\.layers\.\d+\._codebook\.(inited|cluster_size|embed_avg)"
        ),
        reason="moving averages of the codebooks; training only",
    ),
    IgnoredTensors(
        pattern=re.compile(r"decoder\..+"), reason="speech generation; only input is served"
    ),
)

_TOWER_PREFIXES = {
    "visual.": Tower.VISION,
    "audio_encoder.": Tower.AUDIO_ENCODER,
    "speech_embeddings.": Tower.AUDIO_ENCODER,
}


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


def tower_of(tensor: str) -> Tower | None:
    """The tower that a tensor beside the text model belongs to by name; None: to none."""
    for prefix, tower in _TOWER_PREFIXES.items():
        if tensor.startswith(prefix):
            return tower
    return None


def tower_tensor_name(param: TowerParam) -> str:
    """The name in the files of a tower's parameter. The audio tokenizer has a file of its own,
    with our names."""
    if param.tower is Tower.VISION:
        return f"visual.{param.name}"
    is_encoder = param.tower is Tower.AUDIO_ENCODER
    if is_encoder and not param.name.startswith("speech_embeddings."):
        return f"audio_encoder.{param.name}"
    return param.name
