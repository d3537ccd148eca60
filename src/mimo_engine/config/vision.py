"""The vision tower as vision_config describes it (vision.md 1.1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.reader import ConfigReader
from mimo_engine.errors import ConfigError

__all__ = ["MiMoVLVisionConfig", "VisionLayerSpec", "VisionOrder", "parse_vision_config"]


class VisionOrder(StrEnum):
    """In which order the merge units of a frame stand while a layer attends."""

    ROW = "row"
    COLUMN = "column"


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionLayerSpec:
    """What distinguishes one block of the vision tower."""

    order: VisionOrder
    window: int | None
    """Patch i sees patch j of its frame iff |i - j| <= window, in the layer's order; None: all."""
    has_sinks: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class MiMoVLVisionConfig:
    """The vision tower (vision.md 1.1)."""

    layers: tuple[VisionLayerSpec, ...]
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int
    out_hidden_size: int
    norm_eps: float
    sinks: Literal["extra_column", "key0"]
    merger_norm: Literal["layernorm", "rmsnorm"]
    rope_theta: float = 10000.0

    @property
    def patch_dim(self) -> int:
        """Values of one patch: channel x frame x row x column."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches that become one token."""
        return self.spatial_merge_size**2


def parse_vision_config(raw: Mapping[str, Any], facts: MediaFacts) -> MiMoVLVisionConfig:
    """vision_config as published. Raises ConfigError."""
    reader = ConfigReader(raw, where="vision_config")
    reader.require("hidden_act", "silu", default="silu")
    patch_size = reader.take("patch_size", int)
    merge_size = reader.take("spatial_merge_size", int, default=2)
    head_dim = reader.take("qk_channels", int, default=64)
    if reader.take("kv_channels", int, default=head_dim) != head_dim:
        raise ConfigError("vision_config: qk_channels and kv_channels differ; only equal ones run")
    num_heads = reader.take("num_heads", int)
    num_kv_heads = reader.take("num_key_value_heads", int)
    if num_heads % num_kv_heads or head_dim % 4:
        raise ConfigError(
            f"vision_config: {num_heads} heads of {head_dim} over {num_kv_heads} KV heads"
        )
    # Said twice in the releases: what disagrees is a file of something else.
    reader.require("spatial_patch_size", patch_size, default=patch_size)
    query_groups = num_heads // num_kv_heads
    reader.require("num_query_groups", query_groups, default=query_groups)
    in_channels = reader.take("in_chans", int, default=None)
    in_channels = reader.take("in_channels", int, default=3) if in_channels is None else in_channels
    reader.require("in_channels", in_channels, default=in_channels)
    config = MiMoVLVisionConfig(
        layers=_vision_layers(reader),
        hidden_size=reader.take("hidden_size", int),
        intermediate_size=reader.take("intermediate_size", int),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        in_channels=in_channels,
        patch_size=patch_size,
        temporal_patch_size=reader.take("temporal_patch_size", int, default=2),
        spatial_merge_size=merge_size,
        out_hidden_size=reader.take("out_hidden_size", int),
        norm_eps=float(reader.take("rms_norm_eps", float, default=1e-6)),
        sinks=facts.vision_sinks,
        merger_norm=facts.vision_merger_norm,
    )
    reader.finish(_UNUSED_VISION, remedy=None)
    return config


_UNUSED_VISION = {
    "tokens_per_second": "unused with 1-D positions (vision.md 1.1)",
    "window_size": "unused; visual_token_window_size is the window (vision.md 1.1)",
    "model_type": "a name",
    "initializer_range": "training only",
}


def _vision_layers(reader: ConfigReader) -> tuple[VisionLayerSpec, ...]:
    depth = reader.take("depth", int)
    kinds = reader.take("vit_window_attn_types", list)
    full = set(reader.take("fullatt_block_indexes", list))
    window = reader.take("visual_token_window_size", int)
    has_sinks = reader.take("use_sink", bool, default=False)
    if len(kinds) != depth or any(kind not in (-1, 0, 1) for kind in kinds):
        raise ConfigError(f"vit_window_attn_types must list -1, 0 or 1 for each of {depth} layers")
    if window < 0:
        raise ConfigError(f"visual_token_window_size is {window}: it must not be negative")
    if full != {index for index, kind in enumerate(kinds) if kind == -1}:
        raise ConfigError("fullatt_block_indexes and vit_window_attn_types disagree")
    return tuple(
        VisionLayerSpec(
            order=VisionOrder.COLUMN if kind == 1 else VisionOrder.ROW,
            window=None if kind == -1 else window,
            has_sinks=has_sinks and kind != -1,
        )
        for kind in kinds
    )
