"""A weight is a plain tensor or a quantised one; layers ask for it in the dtype they compute in."""

from __future__ import annotations

import torch
from torch import nn

from mimo_engine.kernels.quant import Weight, materialise

__all__ = ["Weight", "assign_weights", "materialise"]


def assign_weights(module: nn.Module, weights: dict[str, Weight]) -> None:
    """Put every weight in its place, by dotted name; quantised ones replace their parameter.

    Each parameter must be filled exactly once and every weight must have a place: the loader and
    the model were made from one config, so a difference is our own defect.
    """
    expected = {name: parameter.shape for name, parameter in module.named_parameters()}
    assert expected.keys() == weights.keys(), sorted(expected.keys() ^ weights.keys())
    for name, weight in weights.items():
        assert weight.shape == expected[name], (name, weight.shape, expected[name])
        path, _, attribute = name.rpartition(".")
        owner = module.get_submodule(path)
        delattr(owner, attribute)
        if isinstance(weight, torch.Tensor):
            setattr(owner, attribute, nn.Parameter(weight, requires_grad=False))
        else:
            setattr(owner, attribute, weight)
    # What else layers keep, such as frequencies, goes where the weights are.
    plain = [weight for weight in weights.values() if isinstance(weight, torch.Tensor)]
    device = plain[0].device if plain else None
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner.register_buffer(name, buffer.to(device), persistent=False)
