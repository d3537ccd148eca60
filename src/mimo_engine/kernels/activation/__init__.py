"""silu(gate) * up, unclamped (text.md 2.4).

`swiglu(gate_up)`: [..., 2 * I] in float32 or bfloat16, gate first. Returns [..., I] in its dtype;
the activation and the product are rounded each.
"""

from mimo_engine.kernels.activation.reference import swiglu

__all__ = ["swiglu"]
