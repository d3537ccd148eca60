"""Decoding gives the same bits on CUDA as on the CPU, and so does loading to a device."""

import pytest
import torch

from mimo_engine.checkpoint.qkv_layout import QkvLayout, fused_grid, load_mimo_v2_qkv_proj_weight
from mimo_engine.config.model import AttentionKind, LayerSpec, MlpKind
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.kernels.quant import (
    Fp8BlockWeight,
    Mxfp4Weight,
    RowGrid,
    encode_fp8,
    encode_mxfp4,
)

FULL = LayerSpec(
    attention=AttentionKind.FULL,
    num_heads=64,
    num_kv_heads=4,
    qk_head_dim=192,
    v_head_dim=128,
    rotary_dim=64,
    rope_theta=1e7,
    num_visible_tokens=None,
    has_sink=False,
    value_scale=0.707,
    mlp=MlpKind.MOE,
    intermediate_size=2048,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [200, 4096])
def test_fp8_decodes_alike(dtype: torch.dtype, num_columns: int) -> None:
    torch.manual_seed(0)
    grid = RowGrid(3840, 192)
    data, scales = encode_fp8(torch.randn(3840, num_columns), grid)
    weight = Fp8BlockWeight(data=data, scales=scales, scale_row=grid.scale_rows())
    assert torch.equal(weight.to("cuda").decode(dtype).cpu(), weight.decode(dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_mxfp4_decodes_alike(dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    packed = torch.randint(256, (3, 512, 1024), dtype=torch.uint8)
    scales = torch.randint(255, (3, 512, 64), dtype=torch.uint8)
    weight = Mxfp4Weight(packed=packed, scales=scales)
    assert torch.equal(weight.to("cuda").decode(dtype).cpu(), weight.decode(dtype))


def test_encoding_on_cuda_gives_the_same_codes() -> None:
    torch.manual_seed(2)
    weight = torch.randn(384, 512)
    grid = RowGrid(384, 192)
    for encoded, expected in (
        (encode_fp8(weight.cuda(), grid), encode_fp8(weight, grid)),
        (encode_mxfp4(weight.cuda()), encode_mxfp4(weight)),
    ):
        for got, want in zip(encoded, expected, strict=True):
            assert torch.equal(got.cpu().view(torch.uint8), want.view(torch.uint8))


@pytest.mark.parametrize("tp_size", [1, 3, 8])
def test_a_fused_qkv_is_cut_alike(tp_size: int) -> None:
    torch.manual_seed(3)
    grid = fused_grid(FULL, 4, QkvLayout.CHUNKED)
    data, scales = encode_fp8(torch.randn(grid.num_rows, 256), grid)
    plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_size - 1)
    args = {"layer": FULL, "num_chunks": 4, "plan": plan}
    on_cpu = load_mimo_v2_qkv_proj_weight(data, scales, **args)
    on_cuda = load_mimo_v2_qkv_proj_weight(data.cuda(), scales.cuda(), **args)
    assert isinstance(on_cpu, Fp8BlockWeight)
    assert isinstance(on_cuda, Fp8BlockWeight)
    assert torch.equal(on_cuda.decode(torch.float32).cpu(), on_cpu.decode(torch.float32))
