"""Products with few rows stream the weights once; with many they are ordinary tiled products.

Few rows (decoding, verification): the weight's rows are the long side of the tile, so that 16
tokens fill an MMA. K is split until there are programs enough to keep the memory busy, and the
splits are the parts that the next operator adds up. Activations are quantised where they are read.

Many rows (prefill): FP8 activations are made once, then tiles of 128 x 128. Plain weights are
left to torch, whose library has nothing to learn from us. `MANY_TILINGS` has candidates beside what
is served, for `bench/tune_experts.py`.
"""

# What is there in one form of a kernel alone is bound under its constant.
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from mimo_engine.kernels.quant import FP8_BLOCK, Fp8BlockWeight, Weight
from mimo_engine.kernels.quant.triton import quantised

__all__ = [
    "MANY_TILINGS",
    "MAX_FEW_ROWS",
    "ManyTiling",
    "linear",
    "linear_parts",
    "multiply_many",
    "quantise_rows",
]

MAX_FEW_ROWS = 64
"""From here on the weights are read once for every 128 rows."""
_BLOCK = tl.constexpr(FP8_BLOCK)
_FEW_TILE = 64
"""Weight rows of a program: what one warp group multiplies at a time."""
_FEW_STAGES = 4
_ENOUGH_BYTES = 6 * 2**20
"""More than the memory delivers in the microsecond that a load takes. Measured: fused qkv, which
has 7 MiB under way, takes 11 % longer in two splits, and a product with 2 MiB half as long in
eight."""
_WANTED_PROGRAMS = 512
_MIN_STEPS = 4
"""Blocks of 128 columns in a split: fewer would not fill the pipeline."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ManyTiling:
    """How a product with many rows is cut: tiles of 128 rows."""

    num_parts: int = 1
    """Tiles of 128 weight rows of a program: two read a quarter less for each product."""
    num_warps: int = 8
    num_stages: int = 4


MANY_TILINGS: Mapping[str, ManyTiling] = {
    "one": ManyTiling(),
    "one, 6 stages": ManyTiling(num_stages=6),
    "pair": ManyTiling(num_parts=2),
    "pair, 16 warps": ManyTiling(num_parts=2, num_warps=16),
}
_SERVED = MANY_TILINGS["one"]


@triton.jit(do_not_specialize=["num_rows"])
def _few_rows(
    x_ptr,
    weight_ptr,
    scale_ptr,
    scale_row_ptr,
    out_ptr,
    num_rows,
    SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr,
    NUM_SPLITS: tl.constexpr,
    IS_FP8: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """out[row, split, :] of a tile of weight rows; x [num_rows, SIZE], weight [NUM_OUT, SIZE]."""
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    STEPS: tl.constexpr = (NUM_BLOCKS + NUM_SPLITS - 1) // NUM_SPLITS
    out_rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    split = tl.program_id(1)
    rows = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    has_out, has_row = out_rows < NUM_OUT, rows < num_rows
    columns = split * STEPS * _BLOCK + tl.arange(0, _BLOCK)
    weights = weight_ptr + out_rows.to(tl.int64)[:, None] * SIZE + columns[None, :]
    inputs = x_ptr + rows.to(tl.int64)[:, None] * SIZE + columns[None, :]
    if IS_FP8:
        scales = scale_ptr + tl.load(scale_row_ptr + out_rows, mask=has_out, other=0) * NUM_BLOCKS
    total = tl.zeros((TILE, ROWS), tl.float32)
    for step in range(STEPS):
        block = split * STEPS + step
        inside = columns[None, :] + step * _BLOCK < SIZE
        w = tl.load(
            weights + step * _BLOCK,
            mask=has_out[:, None] & inside,
            other=0.0,
            eviction_policy="evict_first",
        )
        x = tl.load(inputs + step * _BLOCK, mask=has_row[:, None] & inside, other=0.0)
        if IS_FP8:
            codes, x_scales = quantised(x.to(tl.float32))
            # Beyond the last block everything is 0, whatever the scale.
            w_scales = tl.load(scales + tl.minimum(block, NUM_BLOCKS - 1), mask=has_out, other=0.0)
            total += tl.dot(w, tl.trans(codes)) * (w_scales[:, None] * x_scales[None, :])
        else:
            total = tl.dot(w, tl.trans(x), total)
    place = out_ptr + (rows.to(tl.int64)[None, :] * NUM_SPLITS + split) * NUM_OUT
    tl.store(
        place + out_rows[:, None],
        total.to(out_ptr.dtype.element_ty),
        mask=has_out[:, None] & has_row[None, :],
    )


@triton.jit(do_not_specialize=["num_rows"])
def _quantise_rows(x_ptr, code_ptr, scale_ptr, num_rows, SIZE: tl.constexpr, ROWS: tl.constexpr):
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    block = tl.program_id(1)
    columns = block * _BLOCK + tl.arange(0, _BLOCK)
    has_row = rows < num_rows
    mask = has_row[:, None] & (columns < SIZE)[None, :]
    places = rows[:, None] * SIZE + columns[None, :]
    codes, scales = quantised(tl.load(x_ptr + places, mask=mask, other=0.0).to(tl.float32))
    tl.store(code_ptr + places, codes, mask=mask)
    tl.store(scale_ptr + rows * NUM_BLOCKS + block, scales, mask=has_row)


@triton.jit
def _scaled(product, x_scale, w_scales, IS_UNIFORM: tl.constexpr):
    """w_scales: a pointer to the tile's one scale, or one for each of its columns."""
    w_scale = tl.load(w_scales)
    if IS_UNIFORM:
        scale = (x_scale * w_scale)[:, None]
    else:
        scale = x_scale[:, None] * w_scale[None, :]
    return product * scale


@triton.jit(do_not_specialize=["num_rows"])
def _many_rows(
    codes, x_scale_ptr, weights, scale_ptr, scale_row_ptr, out_ptr, num_rows, SIZE: tl.constexpr,
    NUM_OUT: tl.constexpr, IS_UNIFORM: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    PARTS: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """FP8 rows by FP8 weights, PARTS (1 or 2) tiles of ROWS x TILE outputs; GROUP row tiles go
    together, so that the weights are found in the cache. IS_UNIFORM: a tile's weight rows share
    their scales.

    codes and weights are tensor descriptors: tiles come by the copy engine where there is one, and
    what is beyond an edge comes as 0.
    """
    NUM_BLOCKS: tl.constexpr = (SIZE + _BLOCK - 1) // _BLOCK
    NUM_TILES: tl.constexpr = (NUM_OUT + PARTS * TILE - 1) // (PARTS * TILE)
    program = tl.program_id(0)
    num_row_tiles = tl.cdiv(num_rows, ROWS)
    first = program // (GROUP * NUM_TILES) * GROUP
    group = tl.minimum(num_row_tiles - first, GROUP)
    within = program % (GROUP * NUM_TILES)
    first_row, first_out = (first + within % group) * ROWS, within // group * (PARTS * TILE)
    rows = first_row + tl.arange(0, ROWS)
    x_scales = x_scale_ptr + tl.minimum(rows, num_rows - 1).to(tl.int64) * NUM_BLOCKS
    out_rows = first_out if IS_UNIFORM else first_out + tl.arange(0, TILE)
    scale_rows = tl.load(scale_row_ptr + tl.minimum(out_rows, NUM_OUT - 1))
    w_scales = scale_ptr + scale_rows * NUM_BLOCKS
    total = tl.zeros((ROWS, TILE), tl.float32)
    if PARTS == 2:
        scale_rows = tl.load(scale_row_ptr + tl.minimum(out_rows + TILE, NUM_OUT - 1))
        other_scales = scale_ptr + scale_rows * NUM_BLOCKS
        other = tl.zeros((ROWS, TILE), tl.float32)
    for block in range(NUM_BLOCKS):
        x = codes.load([first_row, block * _BLOCK])
        w = weights.load([first_out, block * _BLOCK])
        x_scale = tl.load(x_scales + block)
        total += _scaled(tl.dot(x, tl.trans(w)), x_scale, w_scales + block, IS_UNIFORM)
        if PARTS == 2:
            w = weights.load([first_out + TILE, block * _BLOCK])
            other += _scaled(tl.dot(x, tl.trans(w)), x_scale, other_scales + block, IS_UNIFORM)
    columns = first_out + tl.arange(0, TILE)
    outputs = out_ptr + rows.to(tl.int64)[:, None] * NUM_OUT + columns[None, :]
    has_row = (rows < num_rows)[:, None]
    dtype = out_ptr.dtype.element_ty
    tl.store(outputs, total.to(dtype), mask=has_row & (columns < NUM_OUT)[None, :])
    if PARTS == 2:
        has_column = (columns < NUM_OUT - TILE)[None, :]
        tl.store(outputs + TILE, other.to(dtype), mask=has_row & has_column)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As quant/activations.py."""
    num_rows, size = x.shape
    num_blocks = triton.cdiv(size, FP8_BLOCK)
    codes = torch.empty(num_rows, size, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(num_rows, num_blocks, dtype=torch.float32, device=x.device)
    rows = 32
    grid = (triton.cdiv(num_rows, rows), num_blocks)
    _quantise_rows[grid](x, codes, scales, num_rows, SIZE=size, ROWS=rows, num_warps=4)
    return codes, scales


def linear(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See the package."""
    if x.shape[0] <= MAX_FEW_ROWS:
        return _few(x, weight, num_splits=1)[:, 0]
    if isinstance(weight, torch.Tensor):
        return torch.nn.functional.linear(x, weight)
    return _many_fp8(x, weight)


def linear_parts(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    """See the package."""
    if x.shape[0] > MAX_FEW_ROWS:
        return linear(x, weight)[:, None]
    num_out, size = weight.shape
    data, *_ = _pieces(weight)
    return _few(x, weight, num_splits=_num_splits(num_out, size, data.element_size()))


def _num_splits(num_out: int, size: int, element_bytes: int) -> int:
    """1 where the tiles alone have bytes enough under way to keep the memory busy; else a power of
    two, as many as fill each split's pipeline."""
    num_tiles, num_blocks = triton.cdiv(num_out, _FEW_TILE), triton.cdiv(size, FP8_BLOCK)
    if num_tiles * _FEW_TILE * FP8_BLOCK * element_bytes * _FEW_STAGES >= _ENOUGH_BYTES:
        return 1
    splits = 1
    while 2 * splits * num_tiles <= _WANTED_PROGRAMS and num_blocks >= 2 * splits * _MIN_STEPS:
        splits *= 2
    return splits


def _few(x: torch.Tensor, weight: Weight, *, num_splits: int) -> torch.Tensor:
    num_rows, size = x.shape
    num_out = weight.shape[0]
    assert x.is_contiguous()
    assert weight.shape[1] == size
    dtype = x.dtype if num_splits == 1 else torch.float32
    out = torch.empty(num_rows, num_splits, num_out, dtype=dtype, device=x.device)
    data, scales, scale_row = _pieces(weight)
    rows = min(max(16, triton.next_power_of_2(num_rows)), MAX_FEW_ROWS)
    grid = (triton.cdiv(num_out, _FEW_TILE), num_splits, triton.cdiv(num_rows, rows))
    _few_rows[grid](
        x,
        data,
        scales,
        scale_row,
        out,
        num_rows,
        SIZE=size,
        NUM_OUT=num_out,
        NUM_SPLITS=num_splits,
        IS_FP8=isinstance(weight, Fp8BlockWeight),
        ROWS=rows,
        TILE=_FEW_TILE,
        num_warps=4,
        num_stages=_FEW_STAGES,
    )
    return out


def _pieces(weight: Weight) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(data, scales, scale_row); of a plain weight thrice the data, of which one is read."""
    if isinstance(weight, Fp8BlockWeight):
        assert weight.data.is_contiguous()
        return weight.data, weight.scales, weight.scale_row
    assert isinstance(weight, torch.Tensor), "MXFP4 is for experts"
    assert weight.is_contiguous()
    return weight, weight, weight


def _many_fp8(x: torch.Tensor, weight: Weight) -> torch.Tensor:
    assert isinstance(weight, Fp8BlockWeight), "MXFP4 is for experts"
    return multiply_many(*quantise_rows(x), weight, x.dtype, _SERVED)


def multiply_many(
    codes: torch.Tensor,
    x_scales: torch.Tensor,
    weight: Fp8BlockWeight,
    dtype: torch.dtype,
    tiling: ManyTiling,
) -> torch.Tensor:
    """[N, rows of weight] in dtype; codes and x_scales as `quantise_rows` makes them."""
    num_rows, size = codes.shape
    num_out = weight.shape[0]
    out = torch.empty(num_rows, num_out, dtype=dtype, device=codes.device)
    rows = tile = 128
    grid = (triton.cdiv(num_rows, rows) * triton.cdiv(num_out, tiling.num_parts * tile),)
    _many_rows[grid](
        TensorDescriptor.from_tensor(codes, [rows, FP8_BLOCK]),
        x_scales,
        TensorDescriptor.from_tensor(weight.data, [tile, FP8_BLOCK]),
        weight.scales,
        weight.scale_row,
        out,
        num_rows,
        SIZE=size,
        NUM_OUT=num_out,
        IS_UNIFORM=weight.rows_per_scale >= tile,
        ROWS=rows,
        TILE=tile,
        PARTS=tiling.num_parts,
        GROUP=16,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
    return out
