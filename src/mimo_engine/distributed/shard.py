"""How one rank's slice of a tensor is cut, as data.

A `Cut` describes a local index space along one dimension: runs copied from the source, zeros
everywhere else. Cuts compose, so "this rank's rows" after "where the file keeps these rows" is
again a cut, and one small interpreter (`gather`, `scatter_into`) serves every layout.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from mimo_engine.distributed.plan import BlockPlan

__all__ = ["Cut", "Run", "cut_blocks", "cut_heads", "joined"]


@dataclass(frozen=True, slots=True)
class Run:
    """Source entries [src, src + length) are local entries [dst, dst + length)."""

    src: int
    dst: int
    length: int


@dataclass(frozen=True, slots=True)
class Cut:
    """A local index space of `size` entries along `dim`; zero outside the runs.

    Runs are ordered by `dst`, do not overlap there and are as long as possible.
    """

    dim: int
    size: int
    runs: tuple[Run, ...]

    def after(self, stored: Cut) -> Cut:
        """This cut of a tensor that is itself `stored`, a cut of the tensor in the file."""
        assert self.dim == stored.dim
        runs = []
        for outer in self.runs:
            for inner in stored.runs:
                first = max(outer.src, inner.dst)
                last = min(outer.src + outer.length, inner.dst + inner.length)
                if first < last:
                    src = inner.src + first - inner.dst
                    runs.append(Run(src, outer.dst + first - outer.src, last - first))
        return _merged(self.dim, self.size, runs)

    def coarse(self, unit: int) -> Cut:
        """The same cut where `unit` neighbours are one entry (packed bytes, scale groups).

        Only the end of the dimension may hold an incomplete unit.
        """
        runs = []
        for run in self.runs:
            assert run.src % unit == run.dst % unit == 0, (run, unit)
            runs.append(Run(run.src // unit, run.dst // unit, -(-run.length // unit)))
        return Cut(self.dim, -(-self.size // unit), tuple(runs))

    def gather(self, source: torch.Tensor) -> torch.Tensor:
        """A new tensor: `source` with `dim` replaced by the local index space."""
        shape = list(source.shape)
        shape[self.dim] = self.size
        out = torch.zeros(shape, dtype=source.dtype, device=source.device)
        self.scatter_into(out, source)
        return out

    def scatter_into(self, out: torch.Tensor, source: torch.Tensor) -> None:
        """Copy the runs from `source` to `out`, converting dtype and device; the rest of `out`
        keeps its values."""
        assert out.shape[self.dim] == self.size
        for run in self.runs:
            piece = source.narrow(self.dim, run.src, run.length)
            out.narrow(self.dim, run.dst, run.length).copy_(piece)


def cut_blocks(dim: int, blocks: BlockPlan, tp_rank: int) -> Cut:
    """The cut of one rank of a dimension dealt by `blocks`."""
    length = blocks.num_real(tp_rank)
    runs = (Run(blocks.start(tp_rank), 0, length),) if length else ()
    return Cut(dim, blocks.local_size, runs)


def cut_heads(dim: int, heads: Sequence[int | None], head_dim: int) -> Cut:
    """The cut that holds the given heads in order, `head_dim` entries each; None is a zero head."""
    runs = (
        Run(head * head_dim, local * head_dim, head_dim)
        for local, head in enumerate(heads)
        if head is not None
    )
    return _merged(dim, len(heads) * head_dim, runs)


def joined(cuts: Sequence[Cut]) -> Cut:
    """The local index spaces of several cuts of one source, one after the other."""
    runs, size = [], 0
    for cut in cuts:
        assert cut.dim == cuts[0].dim
        runs += [Run(run.src, size + run.dst, run.length) for run in cut.runs]
        size += cut.size
    return _merged(cuts[0].dim, size, runs)


def _merged(dim: int, size: int, runs: Iterable[Run]) -> Cut:
    merged: list[Run] = []
    for run in runs:
        if merged:
            last = merged[-1]
            if (last.src + last.length, last.dst + last.length) == (run.src, run.dst):
                merged[-1] = Run(last.src, last.dst, last.length + run.length)
                continue
        merged.append(run)
    return Cut(dim, size, tuple(merged))
