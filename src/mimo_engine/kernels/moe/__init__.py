"""Mixture of experts (text.md 2.4): the router, and the chosen experts' outputs.

`route(x, weight, bias, top_k=, norm_topk_prob=, scaling_factor=)`: x [N, H], weight [E, H] and bias
[E] fp32. Returns experts [N, top_k] (an integer type, distinct in a row) and weights [N, top_k]
fp32. Scores are sigmoids of fp32 logits; the bias chooses and does not weigh.

`experts(x, chosen, weights, gate_up, down)`: x [N, H]; chosen and weights as `route` gives them;
gate_up [E, 2 * I, H] (gate first) and down [E, H, I], plain or quantised. Returns [N, S, H], parts
whose sum over S is

    sum over k of weights[:, k] * down(silu(gate(x)) * up(x))

as `linear_parts` does. The inner activation is rounded to x's dtype, and meets FP8 weights as FP8,
like x itself (quant/activations.py).
"""

from mimo_engine.kernels.moe.reference import experts, route

__all__ = ["experts", "route"]
