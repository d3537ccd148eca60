"""The vision tower (MiMoVL): patches of images and video frames to embeddings of the text model.

    x = patch_embed(patches)
    for each block:  x += proj(attention(norm1(x)));  x += mlp(norm2(x))
    tokens = merger(x)                                 four patches, one merge unit, make a token

Blocks see their frame whole, or through a window along rows or columns: for a run of column blocks
the merge units are permuted on entry and back on exit (vision.md 2). Attribute names are the
checkpoint's without `visual.`. bf16 or fp32, never fp16: the last blocks reach values of 5e5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from mimo_engine.config.vision import MiMoVLVisionConfig, VisionLayerSpec, VisionOrder
from mimo_engine.errors import ConfigError
from mimo_engine.kernels.dispatch import REFERENCE, Kernels
from mimo_engine.kernels.rope import apply_rope
from mimo_engine.kernels.segment_attention import SegmentPlan, SinkMode
from mimo_engine.layers.norm import RMSNorm
from mimo_engine.layers.weight_format import Weight, assign_weights
from mimo_engine.model.vision_grid import (
    Grid,
    column_order,
    frame_lengths,
    inverse_order,
    reorder_units,
    rotary_tables,
)

__all__ = [
    "MiMoVisionBlock",
    "MiMoVisionPatchEmbed",
    "MiMoVisionPatchMerger",
    "MiMoVisionTransformer",
    "VisionAttention",
]

Rope = tuple[torch.Tensor, torch.Tensor]


class MiMoVisionPatchEmbed(nn.Module):
    """A convolution whose windows do not overlap: a product with the flattened patch."""

    def __init__(self, config: MiMoVLVisionConfig) -> None:
        super().__init__()
        window = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.proj = nn.Conv3d(
            config.in_channels, config.hidden_size, window, stride=window, bias=False
        )

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """[N, patch_dim] in the weight's dtype -> [N, H]."""
        return F.linear(patches, self.proj.weight.flatten(1))


class VisionAttention(nn.Module):
    """Grouped-query attention inside segments, with rotary tables from outside.

    window: patch i sees patch j of its segment iff |i - j| <= window; None: all of them.
    sinks: how the sinks act that this layer has; None: it has none.
    softmax_scale: None is head_dim ** -0.5; any other value is used as it is.
    """

    def __init__(
        self,
        hidden_size: int,
        *,
        num_heads: int,
        num_kv_heads: int,
        head_dim: int,
        window: int | None,
        sinks: SinkMode | None,
        softmax_scale: float | None = None,
        kernels: Kernels = REFERENCE,
    ) -> None:
        super().__init__()
        self._heads = (num_heads, num_kv_heads, num_kv_heads)
        self._head_dim = head_dim
        self._window = window
        self._kernels = kernels
        self._sink_mode: SinkMode = sinks or "extra_column"
        self._softmax_scale = head_dim**-0.5 if softmax_scale is None else softmax_scale
        self.qkv = nn.Linear(hidden_size, sum(self._heads) * head_dim)
        self.proj = nn.Linear(num_heads * head_dim, hidden_size)
        self.sinks = None if sinks is None else nn.Parameter(torch.zeros(num_heads))

    def forward(self, x: torch.Tensor, rope: Rope, lengths: Sequence[int]) -> torch.Tensor:
        """x [N, H] -> [N, H]; rope (cos, sin), each [N, head_dim / 2]; lengths sum to N."""
        q, k, v = self.qkv(x).unflatten(-1, (-1, self._head_dim)).split(self._heads, dim=1)
        out = self._kernels.segment_attention(
            apply_rope(q, *rope),
            apply_rope(k, *rope),
            v,
            lengths,
            left=self._window,
            right=self._window,
            sinks=self.sinks,
            sink_mode=self._sink_mode,
            softmax_scale=self._softmax_scale,
        )
        return self.proj(out.flatten(1))


class MiMoVisionMlp(nn.Module):
    """down(silu(gate(x)) * up(x)), all with bias."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, intermediate_size)
        self.up_proj = nn.Linear(hidden_size, intermediate_size)
        self.down_proj = nn.Linear(intermediate_size, hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] -> [N, H]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class MiMoVisionBlock(nn.Module):
    """Pre-norm attention and MLP, each added to the residual stream."""

    def __init__(
        self, config: MiMoVLVisionConfig, spec: VisionLayerSpec, kernels: Kernels = REFERENCE
    ) -> None:
        super().__init__()
        self.order = spec.order
        self.norm1 = RMSNorm(config.hidden_size, config.norm_eps, kernels)
        self.norm2 = RMSNorm(config.hidden_size, config.norm_eps, kernels)
        self.attn = VisionAttention(
            config.hidden_size,
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            window=spec.window,
            sinks=config.sinks if spec.has_sinks else None,
            kernels=kernels,
        )
        self.mlp = MiMoVisionMlp(config.hidden_size, config.intermediate_size)

    def forward(self, x: torch.Tensor, rope: Rope, lengths: Sequence[int]) -> torch.Tensor:
        """x [N, H] and rope in this block's order -> [N, H]."""
        x = x + self.attn(self.norm1(x), rope, lengths)
        return x + self.mlp(self.norm2(x))


class MiMoVisionPatchMerger(nn.Module):
    """Each patch normalised, the patches of a merge unit side by side, two layers without bias."""

    def __init__(self, config: MiMoVLVisionConfig, kernels: Kernels = REFERENCE) -> None:
        super().__init__()
        width = config.hidden_size * config.merge_unit
        self._width = width
        # Both are a weight without a bias: the file does not tell which was trained (vision.md D2).
        if config.merger_norm == "rmsnorm":
            self.ln_q = RMSNorm(config.hidden_size, config.norm_eps, kernels)
        else:
            self.ln_q = nn.LayerNorm(config.hidden_size, config.norm_eps, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(width, width, bias=False),
            nn.GELU(),
            nn.Linear(width, config.out_hidden_size, bias=False),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, H] in row order -> [N / merge_unit, out_hidden_size]."""
        return self.mlp(self.ln_q(x).view(-1, self._width))


class MiMoVisionTransformer(nn.Module):
    """The whole tower; every rank of a group holds all of it."""

    def __init__(self, config: MiMoVLVisionConfig, kernels: Kernels = REFERENCE) -> None:
        super().__init__()
        self._config = config
        self.patch_embed = MiMoVisionPatchEmbed(config)
        self.blocks = nn.ModuleList(
            MiMoVisionBlock(config, spec, kernels) for spec in config.layers
        )
        self.merger = MiMoVisionPatchMerger(config, kernels)

    @classmethod
    def from_weights(
        cls,
        config: MiMoVLVisionConfig,
        weights: Mapping[str, Weight],
        kernels: Kernels = REFERENCE,
    ) -> MiMoVisionTransformer:
        """A tower that holds `weights`, all of one dtype but the sinks, without copying them."""
        with torch.device("meta"):
            tower = cls(config, kernels)
        assign_weights(tower, dict(weights))
        return tower

    def forward(self, patches: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """patches [N, patch_dim] of any dtype -> [N / merge_unit, out_hidden_size].

        grids: one (t, h, w) an item, their patches end to end; rows and columns of `patches` as
        vision.md 2.1 orders them, and tokens in the same order. Each frame is encoded by itself.
        Raises ConfigError in fp16.
        """
        x = self.patch_embed(patches.to(self.patch_embed.proj.weight.dtype))
        if x.dtype is torch.float16:
            raise ConfigError(
                "the vision tower overflows in float16: load it in bfloat16 or float32"
            )
        return self.merger(self._run_blocks(x, grids))

    def _run_blocks(self, x: torch.Tensor, grids: Sequence[Grid]) -> torch.Tensor:
        """x [N, H] in row order -> [N, H] in row order."""
        config = self._config
        merge_size, merge_unit = config.spatial_merge_size, config.merge_unit
        # Either order moves units inside their frame alone: one plan does for both.
        lengths = SegmentPlan.of(
            frame_lengths(grids),
            num_heads=config.num_heads,
            num_kv_heads=config.num_kv_heads,
            device=x.device,
        )
        assert sum(lengths) == x.shape[0], (grids, x.shape)
        assert all(h % merge_size == 0 and w % merge_size == 0 for _, h, w in grids), grids
        rope = rotary_tables(
            grids,
            merge_size=merge_size,
            head_dim=config.head_dim,
            theta=config.rope_theta,
            device=x.device,
        )
        to_columns = column_order(grids, merge_size, x.device)
        # How to reach an order from the other one.
        change = {VisionOrder.COLUMN: to_columns, VisionOrder.ROW: inverse_order(to_columns)}
        ropes = {
            VisionOrder.ROW: rope,
            VisionOrder.COLUMN: tuple(
                reorder_units(table, to_columns, merge_unit) for table in rope
            ),
        }
        order = VisionOrder.ROW
        for block in self.blocks:
            assert isinstance(block, MiMoVisionBlock)
            if block.order is not order:
                order = block.order
                x = reorder_units(x, change[order], merge_unit)
            x = block(x, ropes[order], lengths)
        if order is not VisionOrder.ROW:
            x = reorder_units(x, change[VisionOrder.ROW], merge_unit)
        return x
