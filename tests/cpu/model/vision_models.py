"""Vision towers for tests: configurations, and weights by rule or at random."""

import math

import numpy as np
import torch

from mimo_engine.config.vision import MiMoVLVisionConfig, VisionLayerSpec, VisionOrder
from mimo_engine.model.vision import MiMoVisionTransformer

# vision_config of MiMo-V2.5 as published.
REAL_VISION_CONFIG = {
    "depth": 28,
    "fullatt_block_indexes": [0, 9, 18, 27],
    "hidden_act": "silu",
    "hidden_size": 1280,
    "in_chans": 3,
    "intermediate_size": 4608,
    "num_heads": 32,
    "num_key_value_heads": 8,
    "num_query_groups": 4,
    "out_hidden_size": 4096,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "spatial_patch_size": 16,
    "temporal_patch_size": 2,
    "tokens_per_second": 2,
    "use_sink": True,
    "visual_token_window_size": 64,
    "vit_window_attn_types": [-1] + 3 * [0, 0, 0, 0, 1, 1, 1, 1, -1],
    "window_size": 128,
}

FULL, ROW, COLUMN = -1, 0, 1


def layer_specs(kinds, *, window=3, has_sinks=True):
    return tuple(
        VisionLayerSpec(
            order=VisionOrder.COLUMN if kind == COLUMN else VisionOrder.ROW,
            window=None if kind == FULL else window,
            has_sinks=has_sinks and kind != FULL,
        )
        for kind in kinds
    )


def tiny_config(*, kinds=(FULL, ROW, COLUMN, COLUMN, FULL), window=3, has_sinks=True, **changes):
    """The tiny tower of vision.md 8.4, or a variant of it."""
    values = {
        "layers": layer_specs(kinds, window=window, has_sinks=has_sinks),
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "num_kv_heads": 2,
        "head_dim": 8,
        "in_channels": 3,
        "patch_size": 2,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": 16,
        "norm_eps": 1e-6,
        "sinks": "extra_column",
        "merger_norm": "layernorm",
    }
    return MiMoVLVisionConfig(**{**values, **changes})


def generated(ordinal, num_values):
    """u(ordinal, 1 ... num_values) of vision.md 8.4, in (-1, 1)."""
    mask = np.uint64(0xFFFFFFFF)
    index = np.arange(1, num_values + 1, dtype=np.uint64)
    z = (np.uint64(2654435761) * index + np.uint64(40503 * (ordinal + 1))) & mask
    z ^= z >> np.uint64(16)
    z = (np.uint64(2246822519) * z) & mask
    z ^= z >> np.uint64(13)
    return 2 * z.astype(np.float64) / 2**32 - 1


def generated_order(config):
    """Names of all tensors in the generator's order, which is that of vision.md 8.4."""
    names = ["patch_embed.proj.weight"]
    for index, spec in enumerate(config.layers):
        parts = ["norm1.weight", "norm2.weight"]
        for linear in ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"):
            parts += [f"{linear}.weight", f"{linear}.bias"]
        parts += ["attn.sinks"] if spec.has_sinks else []
        names += [f"blocks.{index}.{part}" for part in parts]
    return [*names, "merger.ln_q.weight", "merger.mlp.0.weight", "merger.mlp.2.weight"]


def scaled(name, shape, values):
    """Values in (-1, 1) at the size that a tensor of this name has (vision.md 8.4)."""
    values = values.reshape(shape)
    if name.endswith("sinks"):
        return 2 * values
    if name.endswith("bias"):
        return 0.1 * values
    if len(shape) == 1:
        return 1 + 0.1 * values
    return values * math.sqrt(3 / math.prod(shape[1:]))


def parameter_shapes(config):
    with torch.device("meta"):
        tower = MiMoVisionTransformer(config)
    return {name: tuple(parameter.shape) for name, parameter in tower.named_parameters()}


def generated_weights(config):
    """float64 tensors by the rule of vision.md 8.4."""
    shapes = parameter_shapes(config)
    return {
        name: torch.from_numpy(
            scaled(name, shapes[name], generated(ordinal, math.prod(shapes[name])))
        )
        for ordinal, name in enumerate(generated_order(config))
    }


def random_weights(config, seed=0):
    """float32 tensors of the same sizes, at random."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: scaled(name, shape, torch.rand(math.prod(shape), generator=generator) * 2 - 1)
        for name, shape in parameter_shapes(config).items()
    }


def tower_of(config, weights, dtype=torch.float32):
    return MiMoVisionTransformer.from_weights(
        config, {name: weight.to(dtype) for name, weight in weights.items()}
    )


def random_patches(config, grids, seed=0):
    generator = torch.Generator().manual_seed(seed)
    num_patches = sum(t * h * w for t, h, w in grids)
    return torch.randn(num_patches, config.patch_dim, generator=generator)
