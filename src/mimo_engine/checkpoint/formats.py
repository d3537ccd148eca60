"""From stored bits to the weights of one rank: cut, then kept as they are or decoded once.

A `Target` is one parameter being filled. It is allocated whole at the start and every stored tensor
is written straight to its place, so that loading needs no second copy of anything large. Padding is
zero: the buffers start as zeros and only real rows and columns are written.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import torch

from mimo_engine.checkpoint.params import ParamPart, ParamSpec
from mimo_engine.distributed.shard import Cut
from mimo_engine.kernels.quant import (
    FP8_BLOCK,
    MXFP4_GROUP,
    Fp8BlockWeight,
    Mxfp4Weight,
    RowGrid,
    decode_fp8,
    decode_mxfp4,
    rows_per_scale,
)

__all__ = ["DenseTarget", "Fp8Target", "Mxfp4Target", "StoredFormat", "StoredWeight", "Target"]


class StoredFormat(StrEnum):
    PLAIN = "plain"
    FP8 = "fp8"
    MXFP4 = "mxfp4"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredWeight:
    """One tensor of the files with its scales: data [R, K], or any shape when plain.

    scales: fp32 [grid.num_scale_rows, ceil(K / 128)] for FP8, uint8 [R, K / 32] for MXFP4 (whose
    data is uint8 [R, K / 2]).
    """

    data: torch.Tensor
    scales: torch.Tensor | None = None
    grid: RowGrid | None = None

    def decode_run(self, dim: int, start: int, length: int, out: torch.Tensor) -> None:
        """Decode entries [start, start + length) of `dim` into `out`, which has their shape."""
        if self.scales is None:
            out.copy_(self.data.narrow(dim, start, length))
            return
        device = out.device
        if self.grid is not None:
            scales, scale_row = self.scales, self.grid.scale_rows()
            if dim == 0:
                scale_row = scale_row.narrow(0, start, length)
            else:
                scales = _narrow_columns(scales, start, length, FP8_BLOCK)
            data = self.data.narrow(dim, start, length)
            decode_fp8(data.to(device), scales.to(device), scale_row.to(device), out=out)
            return
        if dim == 0:
            data = self.data.narrow(0, start, length)
            scales = self.scales.narrow(0, start, length)
        else:
            data = _narrow_columns(self.data, start, length, 2)
            scales = _narrow_columns(self.scales, start, length, MXFP4_GROUP)
        decode_mxfp4(data.to(device), scales.to(device), out=out)


class DenseTarget:
    """A plain tensor; quantised parts are decoded into it."""

    def __init__(self, spec: ParamSpec, *, dtype: torch.dtype, device: torch.device) -> None:
        self.weight = torch.zeros(spec.shape, dtype=dtype, device=device)

    def fill(self, part: ParamPart, expert: int | None, stored: StoredWeight) -> None:
        out = _rows(self.weight, part, expert)
        if part.cut is None:
            stored.decode_run(0, 0, len(out), out)
            return
        for run in part.cut.runs:
            place = out.narrow(part.cut.dim, run.dst, run.length)
            stored.decode_run(part.cut.dim, run.src, run.length, place)


class Fp8Target:
    """An `Fp8BlockWeight` with the stored bits. `grids` gives the row grid of each stored part.

    Of a part's scale rows those are kept that its local rows use, in stored order.
    """

    def __init__(
        self, spec: ParamSpec, grids: Mapping[str, RowGrid], *, device: torch.device
    ) -> None:
        self._used: dict[str, torch.Tensor] = {}
        self._first: dict[str, int] = {}
        scale_rows, num_scale_rows = [], 0
        for part in spec.parts:
            used, local = _used_scale_rows(part, grids[part.name])
            self._used[part.name], self._first[part.name] = used, num_scale_rows
            scale_rows.append(local + num_scale_rows)
            num_scale_rows += len(used)
        *stack, num_rows, num_columns = spec.shape
        num_column_blocks = -(-num_columns // FP8_BLOCK)
        scale_row = torch.cat(scale_rows)
        self.weight = Fp8BlockWeight(
            data=torch.zeros(
                *stack, num_rows, num_columns, dtype=torch.float8_e4m3fn, device=device
            ),
            scales=torch.zeros(*stack, num_scale_rows, num_column_blocks, device=device),
            scale_row=scale_row.to(device),
            rows_per_scale=rows_per_scale(scale_row),
        )

    def fill(self, part: ParamPart, expert: int | None, stored: StoredWeight) -> None:
        assert stored.scales is not None
        used, first = self._used[part.name], self._first[part.name]
        scales = self.weight.scales if expert is None else self.weight.scales[expert]
        columns = part.cut if part.cut is not None and part.cut.dim == 1 else None
        _copy(_rows(self.weight.data, part, expert), stored.data, part.cut)
        _copy(
            scales.narrow(0, first, len(used)),
            stored.scales[used],
            None if columns is None else columns.coarse(FP8_BLOCK),
        )


class Mxfp4Target:
    """An `Mxfp4Weight` with the stored bits."""

    def __init__(self, spec: ParamSpec, *, device: torch.device) -> None:
        *rows, num_columns = spec.shape
        self.weight = Mxfp4Weight(
            packed=torch.zeros(*rows, num_columns // 2, dtype=torch.uint8, device=device),
            scales=torch.zeros(*rows, num_columns // MXFP4_GROUP, dtype=torch.uint8, device=device),
        )

    def fill(self, part: ParamPart, expert: int | None, stored: StoredWeight) -> None:
        assert stored.scales is not None
        for out, source, unit in (
            (self.weight.packed, stored.data, 2),
            (self.weight.scales, stored.scales, MXFP4_GROUP),
        ):
            cut = part.cut
            if cut is not None and cut.dim == 1:
                cut = cut.coarse(unit)
            _copy(_rows(out, part, expert), source, cut)


Target = DenseTarget | Fp8Target | Mxfp4Target
"""`fill` writes one part into `weight`; every (part, expert) comes exactly once."""


def _rows(tensor: torch.Tensor, part: ParamPart, expert: int | None) -> torch.Tensor:
    """The rows of `part` (of one expert) in a parameter's tensor."""
    if expert is not None:
        tensor = tensor[expert]
    return tensor.narrow(0, part.row, part.local_shape[0])


def _copy(out: torch.Tensor, source: torch.Tensor, cut: Cut | None) -> None:
    if cut is None:
        out.copy_(source)
    else:
        cut.scatter_into(out, source)


def _narrow_columns(tensor: torch.Tensor, start: int, length: int, unit: int) -> torch.Tensor:
    assert start % unit == 0
    return tensor.narrow(1, start // unit, -(-length // unit))


def _used_scale_rows(part: ParamPart, grid: RowGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """(stored scale rows that the local rows use, int64; for each local row its place among them).

    Padding rows name the first one. A part that is all padding keeps scale row 0.
    """
    scale_row = grid.scale_rows()
    if part.cut is not None and part.cut.dim == 0:
        real = part.cut.gather(torch.ones_like(scale_row)) > 0
        scale_row = part.cut.gather(scale_row)
    else:
        real = torch.ones_like(scale_row, dtype=torch.bool)
    used, place = torch.unique(scale_row[real], return_inverse=True)
    local = torch.zeros_like(scale_row)
    local[real] = place.int()
    if not len(used):
        used = torch.zeros(1, dtype=torch.int32)
    return used.long(), local
