"""Attention inside segments laid end to end, full or within a window: what both towers compute.

A frame of the vision tower is a segment, and so is a stretch of sound. For a query i of a segment
and its visible keys j, i - left <= j <= i + right:

    s_j = softmax_scale * q_i . k_j        out_i = sum_j exp(s_j) v_j / (sum_j exp(s_j) + E)

E is exp(sink) in mode "extra_column" and 0 otherwise; in mode "key0" the sink is added to s_0.
Sums are fp32, and a sum of nothing gives 0.

`segment_attention(q, k, v, lengths, *, left, right, sinks=None, sink_mode="extra_column",
softmax_scale)`: q [N, Hq, D]; k and v [N, Hkv, D], Hq a multiple of Hkv; query head h reads KV head
h // (Hq / Hkv). Returns [N, Hq, D] in q's dtype; nothing is written in place.

lengths: rows of each segment, N in all; a segment sees itself alone. Query i sees the keys
i - left ... i + right of its segment, both included; None is no bound, so (None, 0) is causal and
(None, None) full. sinks [Hq] are logits, not scaled; in mode "key0" a key 0 outside the window
receives nothing. A `SegmentPlan` is such lengths, made ready once for the calls of all layers.

The torch form takes any float dtype and is differentiable. The Triton form is a forward pass in
bfloat16, with q, k and v of any strides whose last is 1; lengths without a plan are copied to the
device by each call, which a CUDA graph cannot capture. No call of either waits for the device.
"""

from mimo_engine.kernels.segment_attention.plan import SegmentPlan
from mimo_engine.kernels.segment_attention.reference import (
    SinkMode,
    segment_attention,
    segment_attention_reference,
)

__all__ = ["SegmentPlan", "SinkMode", "segment_attention", "segment_attention_reference"]
