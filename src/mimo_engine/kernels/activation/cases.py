"""Cases of the activation."""

from __future__ import annotations

from functools import partial

import torch

from mimo_engine.kernels.activation import reference, triton
from mimo_engine.kernels.op import Arguments, Case, Op, Work

__all__ = ["OP"]


def _make(num_rows: int, width: int, device: torch.device) -> Arguments:
    return {"gate_up": 3 * torch.randn(num_rows, 2 * width, device=device).bfloat16()}


def _work(arguments: Arguments) -> Work:
    return Work(num_bytes=arguments["gate_up"].nbytes * 3 // 2)


OP = Op(
    name="swiglu",
    reference=lambda **named: (reference.swiglu(**named),),
    triton=lambda **named: (triton.swiglu(**named),),
    cases=(
        Case(name="3 rows of 72", make=partial(_make, 3, 72)),
        Case(name="2 rows of 1500", make=partial(_make, 2, 1500)),
        Case(name="1 row of 16384", make=partial(_make, 1, 16384), work=_work, is_small=False),
        Case(
            name="4096 rows of 16384", make=partial(_make, 4096, 16384), work=_work, is_small=False
        ),
    ),
    # A last bit where the sigmoid differs.
    tolerance=2e-3,
)
