"""Which implementation of each operator a model runs: chosen once, at start.

    kernels = choose_kernels("auto", device, dtype)
    TextModel(config, plan, comm, kernels)

A table of functions is all there is to it. Nothing falls back: a chosen one that cannot run raises.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch

from mimo_engine.config.engine import KernelChoice, Mxfp4Activations
from mimo_engine.errors import ConfigError
from mimo_engine.kernels.activation import swiglu
from mimo_engine.kernels.attention import AttentionGroup, PagedRows, attention
from mimo_engine.kernels.decode_step import DraftRows, StepRows
from mimo_engine.kernels.linear import linear, linear_parts
from mimo_engine.kernels.moe import experts, route
from mimo_engine.kernels.norm import add_rms_norm
from mimo_engine.kernels.quant import Weight
from mimo_engine.kernels.rope_kv import rope_and_write
from mimo_engine.kernels.segment_attention import segment_attention

__all__ = ["REFERENCE", "AttentionRows", "Kernels", "StepKernels", "choose_kernels", "describe"]


AttentionRows = Sequence[AttentionGroup] | PagedRows
"""What attention is told of a batch: every row stands in one group, or in one sequence."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kernels:
    """The operators of the text model, the draft layers and the towers; each package has the
    contract."""

    name: str
    reads_pages: bool
    """Whether `attention` takes `PagedRows`; otherwise `AttentionGroup`s."""
    add_rms_norm: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    linear: Callable[..., torch.Tensor]
    linear_parts: Callable[..., torch.Tensor]
    swiglu: Callable[[torch.Tensor], torch.Tensor]
    rope_and_write: Callable[..., torch.Tensor]
    attention: Callable[..., torch.Tensor]
    route: Callable[..., tuple[torch.Tensor, torch.Tensor]]
    experts: Callable[..., torch.Tensor]
    segment_attention: Callable[..., torch.Tensor]
    prepare_experts: Callable[[Weight, Mxfp4Activations], Any]
    """Once, at load: a weight [E, out, in] as `experts` takes it; the second argument is for MXFP4
    alone."""
    step: StepKernels | None
    """None: steps are not captured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepKernels:
    """What surrounds the forward pass in a step that never waits for the host."""

    begin_step: Callable[..., StepRows]
    end_step: Callable[..., torch.Tensor]
    sample_rows: Callable[..., torch.Tensor]
    begin_drafts: Callable[..., DraftRows]
    draft_tokens: Callable[..., torch.Tensor]
    end_drafts: Callable[..., None]
    accept_drafts: Callable[..., tuple[torch.Tensor, torch.Tensor]]


REFERENCE = Kernels(
    name="reference",
    reads_pages=False,
    add_rms_norm=add_rms_norm,
    linear=linear,
    linear_parts=linear_parts,
    swiglu=swiglu,
    rope_and_write=rope_and_write,
    attention=attention,
    route=route,
    experts=experts,
    segment_attention=segment_attention,
    prepare_experts=lambda weight, _: weight,
    step=None,
)


def choose_kernels(choice: KernelChoice, device: torch.device, dtype: torch.dtype) -> Kernels:
    """`auto`: Triton for bfloat16 on a GPU that has FP8 (compute capability 8.9), plain torch
    elsewhere. Raises ConfigError for a choice that cannot run here."""
    fits = device.type == "cuda" and dtype is torch.bfloat16
    has_fp8 = fits and torch.cuda.get_device_capability(device) >= (8, 9)
    if choice == "reference" or (choice == "auto" and not has_fp8):
        return REFERENCE
    if not fits:
        raise ConfigError(
            f"--kernels triton computes bfloat16 on a GPU, not {dtype} on {device.type}: use "
            "--dtype bfloat16 on a GPU, or --kernels reference"
        )
    if not has_fp8:
        raise ConfigError(
            "--kernels triton needs a GPU with FP8 (compute capability 8.9 or more): use "
            "--kernels reference"
        )
    if find_spec("triton") is None:
        raise ConfigError(
            "Triton is not installed: it comes with torch's builds for GPUs; `pip install triton`, "
            "or use --kernels reference"
        )
    return _triton()


def _triton() -> Kernels:
    # The one place that serving imports Triton from.
    from mimo_engine.kernels.triton_table import TRITON  # noqa: PLC0415

    return TRITON


def describe(kernels: Kernels) -> dict[str, Any]:
    """Operator -> the module whose function runs."""
    return {
        name: getattr(kernels, name).__module__
        for name in Kernels.__slots__
        if callable(getattr(kernels, name))
    }
