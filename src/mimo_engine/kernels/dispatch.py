"""Which implementation of each operator a model runs: chosen once, at start.

    kernels = choose_kernels("auto", device, dtype)
    TextModel(config, plan, comm, kernels)

A table of functions is all there is to it. Nothing falls back: a chosen one that cannot run raises.
"""

from __future__ import annotations

import logging
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


_logger = logging.getLogger(__name__)

_SHARED_BYTES = 168 * 1024
"""Of a block: what attention of prompts takes at heads of 192 (`make check-sass`), the most of all.
GPUs of compute capability 8.9 and 12 have 99 KiB."""

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
    """`auto`: Triton for bfloat16 on a GPU that has FP8 (compute capability 8.9) and enough shared
    memory, plain torch elsewhere. Raises ConfigError for a choice that cannot run here."""
    if choice == "reference":
        return REFERENCE
    if device.type != "cuda" or dtype is not torch.bfloat16:
        if choice == "auto":
            return REFERENCE
        raise ConfigError(
            f"--kernels triton computes bfloat16 on a GPU, not {dtype} on {device.type}: use "
            "--dtype bfloat16 on a GPU, or --kernels reference"
        )
    if lack := _lack(device):
        if choice == "auto":
            _logger.warning("plain PyTorch in place of Triton kernels, which need %s", lack)
            return REFERENCE
        raise ConfigError(f"--kernels triton needs {lack}: use --kernels reference")
    if find_spec("triton") is None:
        raise ConfigError(
            "Triton is not installed: it comes with torch's builds for GPUs; `pip install triton`, "
            "or use --kernels reference"
        )
    return _triton()


def _lack(device: torch.device) -> str:
    """What the kernels need and this GPU has not; empty where it has all."""
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return f"a GPU with FP8 (compute capability 8.9; here: {'.'.join(map(str, capability))})"
    own = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    if own < _SHARED_BYTES:
        return f"{_SHARED_BYTES // 1024} KiB of shared memory a block (here: {own // 1024})"
    return ""


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
