"""All operators that have more than a reference. For tests and benches."""

from mimo_engine.kernels.attention.cases import OP as PAGED_ATTENTION
from mimo_engine.kernels.linear.cases import OPS as LINEAR
from mimo_engine.kernels.moe.cases import OPS as MOE
from mimo_engine.kernels.norm.cases import OP as ADD_RMS_NORM
from mimo_engine.kernels.rope_kv.cases import OP as ROPE_AND_WRITE
from mimo_engine.kernels.segment_attention.cases import OP as SEGMENT_ATTENTION

__all__ = ["OPS"]

OPS = (ADD_RMS_NORM, *LINEAR, *MOE, SEGMENT_ATTENTION, ROPE_AND_WRITE, PAGED_ATTENTION)
