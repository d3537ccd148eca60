"""One program a row: the row stays in registers between its sum, its mean square and its store."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["add_rms_norm"]


@triton.jit
def _add_rms_norm(
    x_ptr,
    parts_ptr,
    weight_ptr,
    out_ptr,
    normed_ptr,
    row_stride,
    part_stride,
    eps,
    SIZE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    x = tl.load(x_ptr + row * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
    if NUM_PARTS > 0:
        total = tl.zeros((BLOCK,), tl.float32)
        for part in tl.static_range(NUM_PARTS):
            place = parts_ptr + row * row_stride + part * part_stride + columns
            total += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        x = (x + total).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + row * SIZE + columns, x, mask=inside)
        x = x.to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=0) / SIZE + eps)
    normed = x * scale * weight
    tl.store(normed_ptr + row * SIZE + columns, normed.to(normed_ptr.dtype.element_ty), mask=inside)


def add_rms_norm(
    x: torch.Tensor, parts: torch.Tensor | None, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package."""
    num_rows, size = x.shape
    assert x.is_contiguous()
    assert weight.shape == (size,)
    normed = torch.empty_like(x)
    out = x if parts is None else torch.empty_like(x)
    num_parts = row_stride = part_stride = 0
    if parts is not None:
        assert parts.shape[0] == num_rows
        assert parts.shape[2] == size
        assert parts.stride(2) == 1
        num_parts, row_stride, part_stride = parts.shape[1], parts.stride(0), parts.stride(1)
    block = triton.next_power_of_2(size)
    _add_rms_norm[(num_rows,)](
        x,
        x if parts is None else parts,
        weight,
        out,
        normed,
        row_stride,
        part_stride,
        eps,
        SIZE=size,
        NUM_PARTS=num_parts,
        BLOCK=block,
        num_warps=min(16, max(1, block // 256)),
    )
    return out, normed
