"""The experts' layer of training is the one that is served."""

import torch

from mimo_engine.demo.dense_experts import DenseExperts, ExpertLoad
from mimo_engine.distributed.groups import SingleRank
from mimo_engine.kernels.dispatch import REFERENCE
from mimo_engine.layers.mlp import MoeMlp


def layers(shape):
    torch.manual_seed(0)
    served = MoeMlp(shape.text.hidden_size, 96, shape.text.router, SingleRank(), REFERENCE)
    for parameter in served.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    load = ExpertLoad()
    return served, DenseExperts(served, load), load


def test_dense_experts_give_what_the_served_experts_give(shape):
    served, trained, _ = layers(shape)
    x = torch.randn(50, shape.text.hidden_size)
    torch.testing.assert_close(trained(x), served(x))


def test_gradients_are_those_of_the_served_experts(shape):
    served, trained, _ = layers(shape)
    x = torch.randn(50, shape.text.hidden_size)
    weights = torch.randn(50, shape.text.hidden_size)
    gradients = []
    for layer in (served, trained):
        layer.zero_grad()
        (layer(x).sum(dim=1) * weights).sum().backward()
        gradients.append({n: p.grad for n, p in layer.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


def test_the_bias_moves_towards_an_even_load_of_real_rows(shape):
    served, trained, load = layers(shape)
    with torch.no_grad():
        served.gate.weight.zero_()
        served.gate.e_score_correction_bias.copy_(torch.arange(8.0))
    load.is_counted = torch.arange(40) < 30
    trained(torch.randn(40, shape.text.hidden_size))
    assert load.even_out(0.5) == 4  # two of eight experts have it all
    expected = torch.arange(8.0) + torch.tensor([0.5] * 6 + [-0.5] * 2)
    torch.testing.assert_close(served.gate.e_score_correction_bias.detach(), expected)
