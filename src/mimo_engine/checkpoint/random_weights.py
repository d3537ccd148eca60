"""Weights of a real shape without a file: normals, made where they will be used.

For timing alone: a text of such a model means nothing, but every byte is touched as a real one's
would be, tokens spread over all experts, and activations stay of ordinary size. Made in place, an
expert at a time, so that memory holds the weights and little more.
"""

from __future__ import annotations

import torch

from mimo_engine.checkpoint.load import Weight
from mimo_engine.checkpoint.params import ParamSpec, Storage, layer_of, parameter_specs
from mimo_engine.config.engine import RandomWeights
from mimo_engine.config.model import ModelConfig
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.quant import (
    FP8_BLOCK,
    MXFP4_GROUP,
    Fp8BlockWeight,
    Mxfp4Weight,
    RowGrid,
    rows_per_scale,
)

__all__ = ["random_weights"]

_FP8_STD = 60.0
"""Of codes: the largest of a block of normals then comes near 448 and seldom beyond."""


def random_weights(
    config: ModelConfig,
    kind: RandomWeights,
    plan: ParallelPlan,
    *,
    dtype: torch.dtype,
    device: torch.device,
    num_mtp_layers: int,
) -> dict[str, Weight]:
    """All parameters by name, as `load_checkpoint` has them with keep_quantised.

    kind: random-bf16: all plain; random-fp8: as the FP8 checkpoints store them (o_proj, eh_proj,
    embedding and head are plain); random-mxfp4: the same with MXFP4 experts.
    """
    torch.manual_seed(0)
    return {
        name: _one(name, spec, config, kind, dtype, device)
        for name, spec in parameter_specs(config, plan, num_mtp_layers=num_mtp_layers).items()
    }


def _one(
    name: str,
    spec: ParamSpec,
    config: ModelConfig,
    kind: RandomWeights,
    dtype: torch.dtype,
    device: torch.device,
) -> Weight:
    is_quantised = spec.storage is Storage.LINEAR and ".o_proj." not in name
    if is_quantised and kind != "random-bf16":
        if spec.num_experts is not None and kind == "random-mxfp4":
            return _mxfp4(spec, device)
        return _fp8(spec, _grid(name, spec, config), device)
    if spec.storage in (Storage.FLOAT32, Storage.FLOAT32_ONLY):
        dtype = torch.float32
    weight = torch.empty(spec.shape, dtype=dtype, device=device)
    if name.endswith("norm.weight"):
        return weight.fill_(1.0)
    if len(spec.shape) == 1:
        return weight.zero_()
    for part in weight.view(-1, *spec.shape[-2:]):
        is_table = name == "embed_tokens.weight"
        part.normal_(std=1.0 if is_table else part.shape[-1] ** -0.5)
    return weight


def _grid(name: str, spec: ParamSpec, config: ModelConfig) -> RowGrid:
    """Scale blocks restart in every chunk of fused qkv (text.md 3.3)."""
    num_rows = spec.shape[-2]
    num_chunks = layer_of(config, name).num_kv_heads if ".qkv_proj." in name else 1
    period = num_rows // num_chunks if num_rows % num_chunks == 0 else num_rows
    return RowGrid(num_rows, period)


def _fp8(spec: ParamSpec, grid: RowGrid, device: torch.device) -> Fp8BlockWeight:
    *stack, num_rows, num_columns = spec.shape
    data = torch.empty(spec.shape, dtype=torch.float8_e4m3fn, device=device)
    for part in data.view(-1, num_rows, num_columns):
        values = torch.randn(num_rows, num_columns, dtype=torch.bfloat16, device=device)
        part.copy_(values.mul_(_FP8_STD).clamp_(-448, 448))
    num_blocks = -(-num_columns // FP8_BLOCK)
    scales = torch.rand(*stack, grid.num_scale_rows, num_blocks, device=device)
    scale_row = grid.scale_rows()
    return Fp8BlockWeight(
        data=data,
        scales=(0.5 + scales) * (num_columns**-0.5 / _FP8_STD),
        scale_row=scale_row.to(device),
        rows_per_scale=rows_per_scale(scale_row),
    )


def _mxfp4(spec: ParamSpec, device: torch.device) -> Mxfp4Weight:
    """Uniform codes, whose standard deviation is about 3, under exponents of three values."""
    *rows, num_columns = spec.shape
    packed = torch.empty(*rows, num_columns // 2, dtype=torch.uint8, device=device)
    for part in packed.view(-1, num_columns // 2 * rows[-1]):
        part.random_(0, 256)
    exponent = 127 + round(float(torch.tensor(num_columns**-0.5 / 3).log2()))
    scales = torch.randint(
        exponent - 1, exponent + 2, (*rows, num_columns // MXFP4_GROUP), device=device
    )
    return Mxfp4Weight(packed=packed, scales=scales.to(torch.uint8))
