"""Rotary embedding, router and experts against their formulas, element by element."""

import math

import torch
from torch.nn import functional as F

from mimo_engine.kernels.moe import experts, route
from mimo_engine.kernels.rope import apply_rope, rope_tables


def test_the_first_dims_rotate_by_halves_and_the_rest_pass():
    torch.manual_seed(0)
    positions = torch.tensor([0, 1, 77, 1_000_003])
    x = torch.randn(4, 2, 20)
    got = apply_rope(x, *rope_tables(positions, 8, 10_000.0))
    for i, position in enumerate(positions.tolist()):
        for j in range(4):
            angle = position * 10_000.0 ** (-2 * j / 8)
            a, b = x[i, :, j].double(), x[i, :, j + 4].double()
            # An fp32 angle near 1e6 is good to 0.06; the references have the same.
            tolerance = 1e-5 if position < 1000 else 0.1
            expected = a * math.cos(angle) - b * math.sin(angle)
            torch.testing.assert_close(got[i, :, j].double(), expected, atol=tolerance, rtol=0)
            expected = b * math.cos(angle) + a * math.sin(angle)
            torch.testing.assert_close(got[i, :, j + 4].double(), expected, atol=tolerance, rtol=0)
    assert torch.equal(got[..., 8:], x[..., 8:])


def test_the_bias_chooses_experts_and_does_not_weigh_them():
    torch.manual_seed(0)
    x, weight = torch.randn(5, 16), torch.randn(6, 16) * 0.3
    bias = torch.tensor([0.0, 5.0, 0.0, 0.0, 0.0, -5.0])
    chosen, weights = route(x, weight, bias, top_k=2, norm_topk_prob=True, scaling_factor=2.5)
    scores = (x @ weight.T).sigmoid()
    assert (chosen == 1).any(dim=-1).all()
    assert not (chosen == 5).any()
    for row in range(5):
        own = scores[row, chosen[row]]
        torch.testing.assert_close(weights[row], 2.5 * own / own.sum())


def test_experts_are_summed_with_their_weights():
    torch.manual_seed(0)
    x = torch.randn(7, 8)
    gate_up, down = torch.randn(4, 12, 8), torch.randn(4, 8, 6)
    chosen = torch.tensor([[0, 1], [3, 0], [2, 3], [1, 0], [0, 2], [3, 1], [2, 1]])
    weights = torch.rand(7, 2)
    got = experts(x, chosen, weights, gate_up, down).sum(dim=1)
    for row in range(7):
        expected = torch.zeros(8)
        for e, w in zip(chosen[row].tolist(), weights[row].tolist(), strict=True):
            gate, up = gate_up[e, :6] @ x[row], gate_up[e, 6:] @ x[row]
            expected += w * (down[e] @ (F.silu(gate) * up))
        torch.testing.assert_close(got[row], expected, atol=1e-4, rtol=1e-4)
