"""How weights move: Muon for matrices, AdamW for everything else.

Muon takes the momentum of a matrix to the nearest orthogonal one, so that all its directions move
alike: by the iteration X <- a X + (b A + c A^2) X with A = X X^T, five times, in bf16 on a GPU.
Matrices of one shape go through it together. The step has the size that AdamW's usually has, 0.2 an
element, so one learning rate serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import nn

__all__ = ["Optimiser"]

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
_NUM_ITERATIONS = 5
_RMS = 0.2
_MOMENTUM = 0.95
_BETAS = (0.9, 0.98)
_WEIGHT_DECAY = 0.02
_TABLES = ("embed_tokens.weight", "lm_head.weight", "mlp.gate.weight", "speech_embeddings")
"""Matrices whose rows are things of their own."""


class Optimiser:
    """Of one part of the model, by name. In a step all of its matrices have a gradient, or none of
    its parameters has one; then nothing moves."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._others: dict[str, nn.Parameter] = {}
        matrices: dict[tuple[int, int], dict[str, nn.Parameter]] = {}
        for name, parameter in parameters.items():
            if parameter.dim() < 2 or any(table in name for table in _TABLES):
                self._others[name] = parameter
            else:
                rows, columns = _as_matrices(name, parameter).shape[1:]
                matrices.setdefault((rows, columns), {})[name] = parameter
        self._groups = [_MatrixGroup(group) for group in matrices.values()]
        tables = [p for p in self._others.values() if p.dim() > 1]
        vectors = [p for p in self._others.values() if p.dim() == 1]
        self._adam = torch.optim.AdamW(
            [
                {"params": tables, "weight_decay": _WEIGHT_DECAY},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=_BETAS,
            fused=vectors[0].is_cuda,
        )

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Move by the gradients, and drop them."""
        if all(parameter.grad is None for parameter in self._others.values()):
            return
        for group in self._groups:
            group.step(lr)
        for settings in self._adam.param_groups:
            settings["lr"] = lr
        self._adam.step()
        for parameter in self._others.values():
            parameter.grad = None

    def state(self) -> dict[str, torch.Tensor]:
        """What the next step depends on besides weights and gradients, by name."""
        state = {name: value for group in self._groups for name, value in group.state().items()}
        for name, parameter in self._others.items():
            for key, value in self._adam.state[parameter].items():
                state[f"{key}.{name}"] = value
        return state

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` returned, in any float dtype."""
        for group in self._groups:
            group.load(state)
        for name, parameter in self._others.items():
            if f"step.{name}" in state:
                # torch keeps the count beside the parameter only where one kernel does it all.
                homes = {"exp_avg": parameter.device, "exp_avg_sq": parameter.device}
                homes["step"] = parameter.device if parameter.is_cuda else torch.device("cpu")
                self._adam.state[parameter] = {
                    key: state[f"{key}.{name}"].to(home, torch.float32, copy=True)
                    for key, home in homes.items()
                }


class _MatrixGroup:
    """Parameters that are matrices of one shape, or stacks of them."""

    def __init__(self, parameters: Mapping[str, nn.Parameter]) -> None:
        self._parameters = dict(parameters)
        self._momentum = torch.zeros_like(self._stacked(self._parameters))
        """[n, rows, columns]."""

    def step(self, lr: float) -> None:
        gradients = {}
        for name, parameter in self._parameters.items():
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad
            parameter.grad = None
        stacked = self._stacked(gradients)
        self._momentum.lerp_(stacked, 1 - _MOMENTUM)
        steps = _orthogonal(stacked.lerp(self._momentum, _MOMENTUM))
        size = lr * _RMS * math.sqrt(max(steps.shape[1:]))
        for parameter, step in self._split(steps):
            parameter.mul_(1 - lr * _WEIGHT_DECAY).sub_(step, alpha=size)

    def state(self) -> dict[str, torch.Tensor]:
        parts = zip(self._parameters, self._split(self._momentum), strict=True)
        return {f"momentum.{name}": part for name, (_, part) in parts}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        own = {name: state[f"momentum.{name}"] for name in self._parameters}
        self._momentum.copy_(self._stacked(own))

    def _stacked(self, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return torch.cat([_as_matrices(name, tensor) for name, tensor in tensors.items()])

    def _split(self, stacked: torch.Tensor) -> Iterator[tuple[nn.Parameter, torch.Tensor]]:
        """Each parameter, and its part of `stacked` in its shape."""
        start = 0
        for name, parameter in self._parameters.items():
            count = len(_as_matrices(name, parameter))
            yield parameter, stacked[start : start + count].view(parameter.shape)
            start += count


def _as_matrices(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns]: experts are a matrix each, the windows of a convolution one matrix."""
    if "experts." in name:
        return tensor
    return tensor.flatten(1)[None]


def _orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """[n, rows, columns], each to the nearest one whose singular values are about 1."""
    x = matrices.bfloat16() if matrices.is_cuda else matrices.float()
    is_tall = x.shape[-2] > x.shape[-1]
    if is_tall:
        x = x.transpose(-2, -1)
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_NUM_ITERATIONS):
        square = x @ x.transpose(-2, -1)
        x = a * x + (b * square + c * square @ square) @ x
    return x.transpose(-2, -1) if is_tall else x
