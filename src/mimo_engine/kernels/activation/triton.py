"""One pass over gate and up."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["activated", "swiglu"]

_BLOCK = 1024


@triton.jit
def activated(gate, up, dtype: tl.constexpr):
    """Of fp32 values that were rounded to dtype, or are to be: as the definition rounds."""
    gate = gate.to(dtype).to(tl.float32)
    up = up.to(dtype).to(tl.float32)
    active = (gate * tl.sigmoid(gate)).to(dtype).to(tl.float32)
    return (active * up).to(dtype)


@triton.jit
def _swiglu(x_ptr, out_ptr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(1).to(tl.int64)
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < WIDTH
    gates = x_ptr + row * (2 * WIDTH) + columns
    gate = tl.load(gates, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gates + WIDTH, mask=inside, other=0.0).to(tl.float32)
    out = activated(gate, up, out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * WIDTH + columns, out, mask=inside)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """See the package; [N, 2 * I]."""
    num_rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    assert gate_up.is_contiguous()
    out = torch.empty(num_rows, width, dtype=gate_up.dtype, device=gate_up.device)
    _swiglu[(triton.cdiv(width, _BLOCK), num_rows)](
        gate_up, out, WIDTH=width, BLOCK=_BLOCK, num_warps=4
    )
    return out
