"""What an operator is: a definition in plain torch, and cases on which a faster one must equal it.

    kernels/<op>/__init__.py    the contract: shapes, dtypes, layout, what is written in place
    kernels/<op>/reference.py   plain torch, fp32 inside: the definition
    kernels/<op>/triton.py      Triton, for GPUs from sm_80 on
    kernels/<op>/cases.py       an `Op`: one test and one bench run all of them

Nothing that serves imports `cases`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Case", "Op", "Work", "relative_error"]

Arguments = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """The least that any implementation does for one call."""

    num_bytes: int
    """Each input read once, each output written once."""
    num_flops: int = 0
    """Of matrix products."""
    is_fp8: bool = False
    """Whether the products may run at the FP8 rate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One set of shapes."""

    name: str
    make: Callable[[torch.device], Arguments]
    """Fresh random arguments by name, from torch's global generator; never zeros."""
    work: Callable[[Arguments], Work] | None = None
    """None: a case for tests alone."""
    is_small: bool = True
    """Whether Triton's interpreter computes it in seconds; the others need a GPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Op:
    """`reference` and `triton` take a case's arguments by name and return tensors to compare, those
    that they write in place included."""

    name: str
    reference: Callable[..., Sequence[torch.Tensor]]
    triton: Callable[..., Sequence[torch.Tensor]]
    cases: Sequence[Case]
    tolerance: float
    """Of `relative_error`, with the reason beside it where the Op is made."""


def relative_error(out: torch.Tensor, expected: torch.Tensor) -> float:
    """‖out − expected‖ / ‖expected‖ in float64; inf where out has a NaN that expected has not."""
    assert out.shape == expected.shape, (out.shape, expected.shape)
    assert out.dtype == expected.dtype, (out.dtype, expected.dtype)
    difference = (out.double() - expected.double()).norm()
    scale = expected.double().norm()
    error = float(difference / scale if scale > 0 else difference)
    return error if error == error else float("inf")
