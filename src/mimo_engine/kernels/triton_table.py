"""All operators in Triton. Importing this needs Triton."""

from __future__ import annotations

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
from mimo_engine.kernels.moe.router import route
from mimo_engine.kernels.moe.triton import experts
from mimo_engine.kernels.norm.triton import add_rms_norm
from mimo_engine.kernels.rope_kv.triton import rope_and_write
from mimo_engine.kernels.sampling.triton import accept_drafts, sample_rows
from mimo_engine.kernels.segment_attention.triton import segment_attention

__all__ = ["TRITON"]

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
    experts=experts,
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
