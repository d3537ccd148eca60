"""Add to the residual stream and normalise (text.md 2.1).

    x' = x + sum over s of parts[:, s]          one rounding, to x's dtype
    normed = weight * x' / sqrt(mean(x'^2) + eps)

x [N, H] (float32 or bfloat16); parts [N, S, H] of any float dtype and any strides with a last one
of 1, or None: nothing is added and x' is x itself; weight [H]. Sums in fp32. Returns (x', normed),
both [N, H] in x's dtype; nothing is written in place. The parts are what a product left in pieces:
its splits, or a token's experts.
"""

from mimo_engine.kernels.norm.reference import add_rms_norm

__all__ = ["add_rms_norm"]
