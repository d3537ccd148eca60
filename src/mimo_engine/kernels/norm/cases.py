"""Cases of the residual sum and norm."""

from __future__ import annotations

from functools import partial

import torch

from mimo_engine.kernels.norm import reference, triton
from mimo_engine.kernels.op import Arguments, Case, Op, Work

__all__ = ["OP"]


def _make(
    num_rows: int, size: int, num_parts: int, strided: bool, device: torch.device
) -> Arguments:
    x = torch.randn(num_rows, size, device=device).bfloat16()
    parts = None
    if num_parts:
        shape = (num_parts, num_rows, size) if strided else (num_rows, num_parts, size)
        parts = torch.randn(shape, device=device)
        parts = parts.transpose(0, 1) if strided else parts
    weight = (1 + 0.1 * torch.randn(size, device=device)).bfloat16()
    return {"x": x, "parts": parts, "weight": weight, "eps": 1e-5}


def _work(arguments: Arguments) -> Work:
    x, parts = arguments["x"], arguments["parts"]
    num_bytes = 2 * x.nbytes + arguments["weight"].nbytes
    if parts is not None:
        num_bytes += x.nbytes + parts.nbytes
    return Work(num_bytes=num_bytes)


def _case(num_rows: int, size: int, num_parts: int, strided: bool = False) -> Case:
    return Case(
        name=f"{num_rows} rows of {size}, {num_parts} parts",
        make=partial(_make, num_rows, size, num_parts, strided),
        work=_work if size == 4096 else None,
        is_small=num_rows * size <= 2**16,
    )


OP = Op(
    name="add_rms_norm",
    reference=reference.add_rms_norm,
    triton=triton.add_rms_norm,
    cases=(
        _case(1, 64, 0),
        _case(3, 96, 1),
        _case(5, 4096, 8),
        _case(2, 320, 3, strided=True),
        _case(1, 4096, 8),
        _case(128, 4096, 8),
        _case(4096, 4096, 1),
    ),
    # The output is bfloat16: a last bit now and then.
    tolerance=2e-3,
)
