"""What one rank needs, from config.json alone: bytes of weights by group, bytes of KV cache.

The parameters and their cuts are those that the loader fills, and the pages those that the engine
would allocate, so these numbers cannot drift from what is served, but for draft layers: serving
does not load them yet. What is approximate: the stored format of a tensor (the files decide tensor
by tensor; here it is what the family's releases do) and the count of FP8 scales (one for every 128
x 128 block of a canonical tensor). Towers are exact.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from mimo_engine.cache.groups import CacheLayout, kv_groups, max_window_pages, plan_cache
from mimo_engine.checkpoint.params import ParamSpec, Storage, parameter_specs
from mimo_engine.checkpoint.tower_params import TowerParam
from mimo_engine.config.engine import CacheConfig, SchedulerConfig
from mimo_engine.config.model import AttentionKind, ModelConfig
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.quant import FP8_BLOCK, MXFP4_GROUP

__all__ = ["KVCost", "WeightGroup", "kv_cost", "layout_for", "tower_groups", "weight_groups"]

# The first substring that a parameter's name has decides its group.
_GROUPS = (
    ("mtp.", "draft layers"),
    ("embed_tokens", "embedding"),
    ("lm_head", "head"),
    (".experts.", "experts"),
    (".mlp.gate.", "router"),
    (".mlp.", "dense MLP"),
    (".qkv_proj.", "qkv"),
    (".o_proj.", "o_proj"),
    ("", "norms, sinks"),
)

_PLAIN = {2: "bf16", 4: "fp32"}
_PLAIN_BYTES = {"bf16": 2, "fp32": 4}
_FP8_SCALE_BYTES = 4
_FP8_ROW_INDEX_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightGroup:
    """The parameters of one purpose on one rank."""

    name: str
    formats: tuple[str, ...]
    """The one with most bytes first."""
    num_parameters: int
    """With padding, without scales."""
    num_bytes: int
    """With padding and scales."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KVCost:
    """Bytes on one rank."""

    full_bytes_per_token: int
    """In the full group, for every token that is kept."""
    sliding_bytes_per_sequence: int
    """In the sliding group, at most, whatever the length of the sequence."""


def weight_groups(
    config: ModelConfig,
    plan: ParallelPlan,
    *,
    dtype_bytes: int,
    decoded: bool,
    num_mtp_layers: int,
) -> list[WeightGroup]:
    """What one rank holds, most bytes first.

    dtype_bytes is the size of the model's dtype; decoded: quantised weights are held in that dtype,
    as on a CPU, and not as stored.
    """
    sums = _Sums()
    for name, spec in parameter_specs(config, plan, num_mtp_layers=num_mtp_layers).items():
        group = next(group for part, group in _GROUPS if part in name)
        held_as = _format(config, name, spec, dtype_bytes=dtype_bytes, decoded=decoded)
        sums.add(group, held_as, math.prod(spec.shape), _num_bytes(spec, held_as))
    return sums.groups()


def tower_groups(params: Iterable[TowerParam], *, dtype_bytes: int) -> list[WeightGroup]:
    """What rank 0 holds of the towers, most bytes first; the other ranks hold nothing of them."""
    sums = _Sums()
    for param in params:
        held_as = "fp32" if param.is_codebook else _PLAIN[dtype_bytes]
        size = math.prod(param.shape)
        sums.add(param.tower, held_as, size, size * _PLAIN_BYTES[held_as])
    return sums.groups()


class _Sums:
    """Parameters and bytes by group and format, while they are added up."""

    def __init__(self) -> None:
        self._parameters: Counter[str] = Counter()
        self._bytes: dict[str, Counter[str]] = {}

    def add(self, group: str, held_as: str, num_parameters: int, num_bytes: int) -> None:
        self._parameters[group] += num_parameters
        self._bytes.setdefault(group, Counter())[held_as] += num_bytes

    def groups(self) -> list[WeightGroup]:
        groups = [
            WeightGroup(
                name=group,
                formats=tuple(held_as for held_as, _ in sizes.most_common()),
                num_parameters=self._parameters[group],
                num_bytes=sizes.total(),
            )
            for group, sizes in self._bytes.items()
        ]
        return sorted(groups, key=lambda group: -group.num_bytes)


def kv_cost(
    config: ModelConfig,
    plan: ParallelPlan,
    *,
    dtype_bytes: int,
    page_size: int,
    num_draft_layers: int,
) -> KVCost:
    """What the KV cache of one rank costs by the token and by the sequence, drafts included."""
    full, sliding = kv_groups(config, _kv_heads(config, plan), num_draft_layers)
    pages = 0
    if config.window is not None:
        pages = max_window_pages(config.window + num_draft_layers, page_size)
    return KVCost(
        full_bytes_per_token=full.bytes_per_token(dtype_bytes),
        sliding_bytes_per_sequence=pages * page_size * sliding.bytes_per_token(dtype_bytes),
    )


def layout_for(
    config: ModelConfig,
    plan: ParallelPlan,
    *,
    budget_bytes: int,
    dtype_bytes: int,
    cache: CacheConfig,
    scheduler: SchedulerConfig,
    num_draft_layers: int,
) -> CacheLayout:
    """The pages that the engine would make of `budget_bytes`. Raises ConfigError if too few."""
    return plan_cache(
        config,
        budget_bytes,
        page_size=cache.page_size,
        bytes_per_element=dtype_bytes,
        max_num_seqs=scheduler.max_num_seqs,
        max_num_batched_tokens=scheduler.max_num_batched_tokens,
        max_model_len=scheduler.context_len(config.max_position_embeddings),
        kv_heads=_kv_heads(config, plan),
        num_draft_layers=num_draft_layers,
    )


def _kv_heads(config: ModelConfig, plan: ParallelPlan) -> dict[AttentionKind, int]:
    """KV heads that one rank keeps, by kind of layer."""
    return {layer.attention: plan.heads(layer).slots_per_rank for layer in config.layers}


def _format(
    config: ModelConfig, name: str, spec: ParamSpec, *, dtype_bytes: int, decoded: bool
) -> str:
    if spec.storage in (Storage.FLOAT32, Storage.FLOAT32_ONLY):
        return "fp32"
    plain = _PLAIN[dtype_bytes]
    if spec.storage is Storage.PLAIN or config.quantization is None or decoded:
        return plain
    if name.endswith(".o_proj.weight"):  # no release of the family quantises it
        return plain
    return "mxfp4" if spec.num_experts and config.quantization.experts_are_mxfp4 else "fp8"


def _num_bytes(spec: ParamSpec, held_as: str) -> int:
    size = math.prod(spec.shape)
    if held_as == "mxfp4":
        return size // 2 + size // MXFP4_GROUP
    if held_as != "fp8":
        return size * _PLAIN_BYTES[held_as]
    scale_rows = sum(-(-part.local_shape[0] // FP8_BLOCK) for part in spec.parts)
    scale_columns = -(-spec.shape[-1] // FP8_BLOCK)
    scales = (spec.num_experts or 1) * scale_rows * scale_columns
    return size + scales * _FP8_SCALE_BYTES + spec.shape[-2] * _FP8_ROW_INDEX_BYTES
