"""What ranks say to each other: the `Comm` protocol, alone and over torch.distributed."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.distributed as dist

__all__ = ["Comm", "ProcessGroupComm", "SingleRank"]


class Comm(Protocol):
    """Collectives of the tensor-parallel axis. Layers receive one; there is no global."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in the shape and dtype of x. May reuse x's memory."""
        ...

    def reduce_parts(self, parts: torch.Tensor) -> torch.Tensor:
        """[N, S, H] whose sum over S and ranks is wanted: fewer such parts, the same everywhere."""
        ...

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        """The ranks' x, concatenated along the last dim in rank order."""
        ...

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        """Rank 0's x, in every rank's place; in place."""
        ...


class SingleRank:
    """The world of one rank: nothing to say."""

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def reduce_parts(self, parts: torch.Tensor) -> torch.Tensor:
        return parts

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        return x


class ProcessGroupComm:
    """Collectives over a torch.distributed group (nccl on GPUs, gloo on CPUs)."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self._tp_size = dist.get_world_size(group)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(x, group=self._group)
        return x

    def reduce_parts(self, parts: torch.Tensor) -> torch.Tensor:
        return self.all_reduce(parts.sum(dim=1, keepdim=True))

    def all_gather(self, x: torch.Tensor) -> torch.Tensor:
        parts = [torch.empty_like(x) for _ in range(self._tp_size)]
        dist.all_gather(parts, x.contiguous(), group=self._group)
        return torch.cat(parts, dim=-1)

    def broadcast(self, x: torch.Tensor) -> torch.Tensor:
        dist.broadcast(x, group=self._group, group_src=0)
        return x
