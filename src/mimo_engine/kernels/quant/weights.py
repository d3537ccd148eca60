"""Quantised weights as they are held in memory: the stored bits, cut to one rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mimo_engine.kernels.quant.reference import FP8_BLOCK, MXFP4_GROUP, decode_fp8, decode_mxfp4

__all__ = [
    "Fp8BlockWeight",
    "Mxfp4Weight",
    "QuantisedWeight",
    "Weight",
    "materialise",
    "rows_per_scale",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fp8BlockWeight:
    """An FP8 weight [N, K], or E stacked ones [E, N, K]; see the package for the formula.

    Rows that pad a rank have data 0 and name any valid scale row.
    """

    data: torch.Tensor
    """float8_e4m3fn, [..., N, K]."""
    scales: torch.Tensor
    """float32, [..., S, ceil(K / 128)]: a multiplier, in spite of the file's `scale_inv`."""
    scale_row: torch.Tensor
    """int32 [N], shared by all E: the scale row of each row."""
    rows_per_scale: int = 1
    """A power of two up to 128: aligned tiles of so many rows lie under one scale row, which saves
    a kernel work (`rows_per_scale` finds it). 1 is true of every weight."""

    def __post_init__(self) -> None:
        *batch, num_rows, num_columns = self.data.shape
        assert self.data.dtype is torch.float8_e4m3fn
        assert self.scales.dtype is torch.float32
        assert self.scale_row.dtype is torch.int32
        assert self.scale_row.shape == (num_rows,)
        assert list(self.scales.shape[:-2]) == batch
        assert self.scales.shape[-1] == -(-num_columns // FP8_BLOCK)

    @property
    def shape(self) -> torch.Size:
        return self.data.shape

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.scales.nbytes + self.scale_row.nbytes

    def __getitem__(self, expert: int) -> Fp8BlockWeight:
        """One of the stacked weights."""
        assert self.data.dim() == 3
        return Fp8BlockWeight(
            data=self.data[expert],
            scales=self.scales[expert],
            scale_row=self.scale_row,
            rows_per_scale=self.rows_per_scale,
        )

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """[..., N, K] in `dtype`."""
        out = torch.empty(self.shape, dtype=dtype, device=self.data.device)
        decode_fp8(self.data, self.scales, self.scale_row, out=out)
        return out

    def to(self, device: torch.device | str) -> Fp8BlockWeight:
        return Fp8BlockWeight(
            data=self.data.to(device),
            scales=self.scales.to(device),
            scale_row=self.scale_row.to(device),
            rows_per_scale=self.rows_per_scale,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Mxfp4Weight:
    """An MXFP4 weight [N, K], or E stacked ones [E, N, K]; see the package for the formula."""

    packed: torch.Tensor
    """uint8, [..., N, K / 2]."""
    scales: torch.Tensor
    """uint8 exponents (E8M0), [..., N, K / 32]."""

    def __post_init__(self) -> None:
        assert self.packed.dtype is self.scales.dtype is torch.uint8
        assert self.packed.shape[:-1] == self.scales.shape[:-1]
        assert self.packed.shape[-1] * 2 == self.scales.shape[-1] * MXFP4_GROUP

    @property
    def shape(self) -> torch.Size:
        return torch.Size((*self.packed.shape[:-1], self.packed.shape[-1] * 2))

    @property
    def nbytes(self) -> int:
        return self.packed.nbytes + self.scales.nbytes

    def __getitem__(self, expert: int) -> Mxfp4Weight:
        """One of the stacked weights."""
        assert self.packed.dim() == 3
        return Mxfp4Weight(packed=self.packed[expert], scales=self.scales[expert])

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """[..., N, K] in `dtype`; exact in bfloat16 and float32."""
        out = torch.empty(self.shape, dtype=dtype, device=self.packed.device)
        decode_mxfp4(self.packed, self.scales, out=out)
        return out

    def to(self, device: torch.device | str) -> Mxfp4Weight:
        return Mxfp4Weight(packed=self.packed.to(device), scales=self.scales.to(device))


def rows_per_scale(scale_row: torch.Tensor) -> int:
    """The largest power of two up to 128, such that aligned tiles of so many rows have one scale
    row; the last tile may be cut. scale_row: int32 [N]."""
    size = FP8_BLOCK
    while size > 1:
        padding = -len(scale_row) % size
        tiles = torch.cat((scale_row, scale_row[-1:].expand(padding))).view(-1, size)
        if bool((tiles == tiles[:, :1]).all()):
            break
        size //= 2
    return size


QuantisedWeight = Fp8BlockWeight | Mxfp4Weight
Weight = torch.Tensor | QuantisedWeight


def materialise(weight: Weight, dtype: torch.dtype) -> torch.Tensor:
    """The weight as a tensor of `dtype`. A plain one already has it: loading casts once."""
    if isinstance(weight, torch.Tensor):
        return weight
    return weight.decode(dtype)
