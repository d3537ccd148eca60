"""All operators in Triton. Importing this needs Triton."""

from __future__ import annotations

import logging

import torch

from mimo_engine.config.engine import Mxfp4Activations
from mimo_engine.kernels.activation.triton import swiglu
from mimo_engine.kernels.attention.triton import paged_attention
from mimo_engine.kernels.decode_step.triton import (
    begin_drafts,
    begin_step,
    draft_tokens,
    end_drafts,
    end_step,
)
from mimo_engine.kernels.dispatch import Kernels, StepKernels
from mimo_engine.kernels.linear.triton import linear, linear_parts
from mimo_engine.kernels.moe import mxfp4
from mimo_engine.kernels.moe import triton as plain
from mimo_engine.kernels.moe.router import route
from mimo_engine.kernels.norm.triton import add_rms_norm
from mimo_engine.kernels.quant import Mxfp4Weight, Weight
from mimo_engine.kernels.quant.mxfp4_layout import PackedMxfp4, pack_mxfp4
from mimo_engine.kernels.rope_kv.triton import rope_and_write
from mimo_engine.kernels.sampling.triton import accept_drafts, sample_rows
from mimo_engine.kernels.segment_attention.triton import segment_attention

__all__ = ["TRITON"]

_logger = logging.getLogger(__name__)


def _experts(
    x: torch.Tensor,
    chosen: torch.Tensor,
    weights: torch.Tensor,
    gate_up: Weight | PackedMxfp4,
    down: Weight | PackedMxfp4,
) -> torch.Tensor:
    if isinstance(gate_up, PackedMxfp4):
        assert isinstance(down, PackedMxfp4)
        return mxfp4.experts(x, chosen, weights, gate_up, down)
    assert not isinstance(down, PackedMxfp4)
    return plain.experts(x, chosen, weights, gate_up, down)


def _prepared(weight: Weight, activations: Mxfp4Activations) -> Weight | PackedMxfp4:
    """MXFP4 is packed for what it will be multiplied with."""
    if not isinstance(weight, Mxfp4Weight):
        return weight
    packed, num_lost = pack_mxfp4(weight, activations)
    if num_lost:
        _logger.warning(
            "%d groups of MXFP4 values are so much smaller than the largest of their row that they "
            "are taken as 0 with %s activations",
            int(num_lost),
            activations,
        )
    return packed


TRITON = Kernels(
    name="triton",
    reads_pages=True,
    add_rms_norm=add_rms_norm,
    linear=linear,
    linear_parts=linear_parts,
    swiglu=swiglu,
    rope_and_write=rope_and_write,
    attention=paged_attention,
    route=route,
    experts=_experts,
    prepare_experts=_prepared,
    segment_attention=segment_attention,
    step=StepKernels(
        begin_step=begin_step,
        end_step=end_step,
        begin_drafts=begin_drafts,
        draft_tokens=draft_tokens,
        end_drafts=end_drafts,
        sample_rows=sample_rows,
        accept_drafts=accept_drafts,
    ),
)
