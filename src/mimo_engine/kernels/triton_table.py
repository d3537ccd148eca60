"""All operators in Triton. Importing this needs Triton."""

from __future__ import annotations

from mimo_engine.kernels.activation.triton import swiglu
from mimo_engine.kernels.attention.triton import paged_attention
from mimo_engine.kernels.decode_step.triton import begin_step, end_step
from mimo_engine.kernels.dispatch import Kernels, StepKernels
from mimo_engine.kernels.linear.triton import linear, linear_parts
from mimo_engine.kernels.moe.router import route
from mimo_engine.kernels.moe.triton import experts
from mimo_engine.kernels.norm.triton import add_rms_norm
from mimo_engine.kernels.rope_kv.triton import rope_and_write
from mimo_engine.kernels.sampling.triton import accept_drafts, sample_rows

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
    step=StepKernels(
        begin_step=begin_step,
        end_step=end_step,
        sample_rows=sample_rows,
        accept_drafts=accept_drafts,
    ),
)
