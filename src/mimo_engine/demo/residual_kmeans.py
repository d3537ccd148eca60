"""Codebooks of a residual quantiser by k-means, level by level on what the levels before leave."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["residual_kmeans"]

_NUM_ROUNDS = 25


def residual_kmeans(points: torch.Tensor, sizes: Sequence[int], *, seed: int) -> list[torch.Tensor]:
    """points [n, d] fp32 -> one table [size, d] a level, fp32 with values of bf16: published
    inference rounds them so, and later levels shall see what that leaves."""
    generator = torch.Generator().manual_seed(seed)
    residual = points.float()
    tables = []
    for size in sizes:
        table = _kmeans(residual, size, generator).bfloat16().float()
        residual = residual - table[_nearest(residual, table)]
        tables.append(table)
    return tables


def _kmeans(points: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """[size, d]. Entries begin as points; one that none is nearest to becomes a point again."""

    def draw(count: int) -> torch.Tensor:
        index = torch.randint(len(points), (count,), generator=generator)
        return points[index.to(points.device)]

    table = draw(size)
    for _ in range(_NUM_ROUNDS):
        nearest = _nearest(points, table)
        counts = torch.bincount(nearest, minlength=size)
        sums = torch.zeros_like(table).index_add_(0, nearest, points)
        means = sums / counts.clamp(min=1)[:, None]
        table = torch.where(counts[:, None] > 0, means, draw(size))
    return table


def _nearest(points: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """[n]: the entry of least distance, whose square is |p|^2 - 2 p . t + |t|^2."""
    return torch.addmm(table.square().sum(dim=1), points, table.T, alpha=-2).argmin(dim=1)
