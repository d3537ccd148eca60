"""Cases of products with weights, plain and FP8."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from mimo_engine.kernels.linear import reference, triton
from mimo_engine.kernels.op import Arguments, Case, Op, Work
from mimo_engine.kernels.quant import FP8_BLOCK, Fp8BlockWeight, RowGrid, rows_per_scale

__all__ = ["OPS", "random_fp8"]


def random_fp8(
    num_rows: int, size: int, period: int, device: torch.device, *stack: int
) -> Fp8BlockWeight:
    """Codes of normals with an outlier a block; scales around 1e-2, all different."""
    grid = RowGrid(num_rows, period)
    with torch.device("cpu"):
        scale_row = grid.scale_rows()
    data = torch.empty(*stack, num_rows, size, dtype=torch.float8_e4m3fn, device=device)
    for part in data.view(-1, num_rows, size):  # at once it would be four times as large
        part.copy_(torch.randn(num_rows, size, device=device).mul_(30).clamp_(-448, 448))
    scales = torch.rand(*stack, grid.num_scale_rows, -(-size // FP8_BLOCK), device=device)
    return Fp8BlockWeight(
        data=data,
        scales=0.001 + 0.002 * scales,
        scale_row=scale_row.to(device),
        rows_per_scale=rows_per_scale(scale_row),
    )


def _make(
    num_rows: int, num_out: int, size: int, period: int | None, device: torch.device
) -> Arguments:
    # Rows and blocks of very different size: each has to keep its own scale.
    x = torch.randn(num_rows, size, device=device)
    x *= torch.randn(num_rows, 1, device=device).exp()
    if num_rows > 1:
        x[num_rows // 2] = 0
    if period is None:
        weight = (0.05 * torch.randn(num_out, size, device=device)).bfloat16()
    else:
        weight = random_fp8(num_out, size, period, device)
    return {"x": x.bfloat16(), "weight": weight}


def _work(arguments: Arguments) -> Work:
    x, weight = arguments["x"], arguments["weight"]
    num_out, size = weight.shape
    return Work(
        num_bytes=x.nbytes + weight.nbytes + 2 * x.shape[0] * num_out,
        num_flops=2 * x.shape[0] * num_out * size,
        is_fp8=isinstance(weight, Fp8BlockWeight),
    )


def _case(num_rows: int, num_out: int, size: int, period: int | None) -> Case:
    kind = "bf16" if period is None else "fp8"
    is_small = num_rows * num_out * size <= 2**24
    return Case(
        name=f"{kind} {num_rows} x {num_out} x {size}",
        make=partial(_make, num_rows, num_out, size, period),
        work=None if is_small else _work,
        is_small=is_small,
    )


def _summed(
    function: Callable[..., torch.Tensor], x: torch.Tensor, weight: torch.Tensor | Fp8BlockWeight
) -> tuple[torch.Tensor]:
    """Parts as one tensor, in the dtype that all have."""
    return (function(x, weight).float().sum(dim=1).to(x.dtype),)


_SMALL = (
    _case(1, 64, 128, 64),
    _case(3, 200, 384, 200),
    # The scale grid restarts within a tile, as in fused qkv.
    _case(17, 464, 256, 232),
    _case(5, 72, 320, 72),
    _case(70, 136, 192, 136),
    _case(130, 260, 256, 130),
    _case(2, 100, 512, None),
    _case(33, 64, 200, None),
)
_LARGE = tuple(
    _case(rows, *shape)
    for shape in ((14848, 4096, 3712), (4096, 8192, None), (4096, 16384, 4096))
    for rows in (1, 4, 8, 32, 128, 4096)
)
_WIDE = (_case(1, 152576, 4096, None), _case(32, 152576, 4096, None), _case(1, 32768, 4096, 32768))


def _tiled_op(name: str) -> Op:
    """A way to cut many rows that is not what is served; Triton's interpreter knows no warps."""

    def multiply(x: torch.Tensor, weight: Fp8BlockWeight) -> tuple[torch.Tensor]:
        codes, scales = triton.quantise_rows(x)
        return (triton.multiply_many(codes, scales, weight, x.dtype, triton.MANY_TILINGS[name]),)

    return Op(
        name=f"linear, {name}",
        reference=lambda **named: (reference.linear(**named),),
        triton=multiply,
        cases=(
            *((_case(70, 392, 192, 392), _case(130, 260, 256, 130)) if name == "pair" else ()),
            _case(4096, 14848, 4096, 3712),
        ),
        tolerance=5e-3,
    )


OPS = (
    Op(
        name="linear",
        reference=lambda **named: (reference.linear(**named),),
        triton=lambda **named: (triton.linear(**named),),
        cases=(*_SMALL, *_LARGE, *_WIDE),
        # bfloat16 out, and an activation on the border of two FP8 codes may fall to either side.
        tolerance=5e-3,
    ),
    Op(
        name="linear_parts",
        reference=partial(_summed, reference.linear_parts),
        triton=partial(_summed, triton.linear_parts),
        cases=(_case(3, 192, 2048, 192), _case(2, 72, 4000, None), *_LARGE),
        tolerance=5e-3,
    ),
    *(_tiled_op(name) for name in triton.MANY_TILINGS if name != "one"),
)
