"""y = x W^T, for weights that are plain or quantised.

x [N, K] in float32 or bfloat16, contiguous rows; W [M, K] as a tensor of x's dtype, an
`Fp8BlockWeight` or an `Mxfp4Weight`. Sums in fp32 and one rounding to x's dtype: `linear` returns
[N, M]. `linear_parts` returns [N, S, M], parts whose sum over S is y, in float32 where S > 1: the
next operator adds them up (norm), which costs less than to do it here. bfloat16 rows meet FP8
weights as FP8 (quant/activations.py).
"""

from mimo_engine.kernels.linear.reference import linear, linear_parts

__all__ = ["linear", "linear_parts"]
