"""All operators that have more than a reference. For tests and benches."""

from mimo_engine.kernels.activation.cases import OP as SWIGLU
from mimo_engine.kernels.attention.cases import OP as PAGED_ATTENTION
from mimo_engine.kernels.decode_step.cases import OPS as DECODE_STEP
from mimo_engine.kernels.linear.cases import OPS as LINEAR
from mimo_engine.kernels.moe.cases import OPS as MOE
from mimo_engine.kernels.norm.cases import OP as ADD_RMS_NORM
from mimo_engine.kernels.rope_kv.cases import OP as ROPE_AND_WRITE
from mimo_engine.kernels.sampling.cases import OPS as SAMPLING
from mimo_engine.kernels.segment_attention.cases import OP as SEGMENT_ATTENTION

__all__ = ["OPS"]

OPS = (
    ADD_RMS_NORM,
    SWIGLU,
    *DECODE_STEP,
    *LINEAR,
    *MOE,
    *SAMPLING,
    SEGMENT_ATTENTION,
    ROPE_AND_WRITE,
    PAGED_ATTENTION,
)
