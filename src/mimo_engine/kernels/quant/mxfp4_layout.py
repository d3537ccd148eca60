"""MXFP4 weights in the order that kernels/moe/mxfp4.py decodes cheaply. The bits are the same ones.

A *block* is 256 columns of a row: 32 words of 32 bits, then the next row's block elsewhere. Word j
holds eight codes: columns 4j .. 4j + 3 of the block's first half and of its second. So a tile of
words, seen as bytes, becomes two tiles of as many values, each with neighbours side by side. Where
the 3 bits of a magnitude and the sign lie in the word depends on what the weight is multiplied by:

fp8   a lookup by bytes takes its eight indices from nibbles: magnitude v is in bits 4v .. 4v + 2.
      The signs fill the gaps: of the first four values in bits 8v + 7, where the sign of an FP8
      code is; of the others four places lower.
bf16  two values are cut out at once, one from each 16 bits: of pair p the magnitudes are shifted by
      0, 3, 6 and -3 to where a bfloat16 has its last two exponent bits and its first of mantissa.
      The signs of the first two pairs come along, the other two need a shift of their own.

A code then stands for e2m1 * 2 ** (d - bias) of its group's d, and one power of two per row is
applied to the finished sum. FP8 has room for d = 0 .. 11, bfloat16 for 0 .. 126.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch.nn.functional import pad

from mimo_engine.kernels.quant.reference import MXFP4_GROUP
from mimo_engine.kernels.quant.weights import Mxfp4Weight

__all__ = ["MXFP4_BLOCK", "Activations", "PackedMxfp4", "pack_mxfp4"]

Activations = Literal["fp8", "bf16"]
"""What a packed weight is multiplied by: rows quantised as quant/activations.py has it, or not."""

MXFP4_BLOCK = 256
"""Columns of a block; rows are padded to whole blocks with zeros."""
_GROUPS = MXFP4_BLOCK // MXFP4_GROUP
_WORDS = MXFP4_BLOCK // 8
_CPU_SLAB_ELEMENTS = 2**20
_GPU_SLAB_ELEMENTS = 2**26


@dataclass(frozen=True, kw_only=True, slots=True)
class _Form:
    """How one kind of packed weight is written."""

    targets: Sequence[int]
    """Of each bit of eight codes in order, bit 4v + 3 the sign of v: its place in the word."""
    max_d: int
    bias: int
    """A code is e2m1 * 2 ** (d - bias)."""
    step: int
    offset: int
    """A group's byte is offset + step * d: what the kernel adds or multiplies without a shift."""


def _places(magnitudes: Sequence[int], signs: Sequence[int]) -> list[int]:
    return [
        place
        for magnitude, sign in zip(magnitudes, signs, strict=True)
        for place in (magnitude, magnitude + 1, magnitude + 2, sign)
    ]


_FORMS: dict[Activations, _Form] = {
    "fp8": _Form(
        targets=_places(range(0, 32, 4), (7, 15, 23, 31, 3, 11, 19, 27)),
        max_d=11,
        bias=5,
        step=8,
        offset=0,
    ),
    "bf16": _Form(
        targets=_places((6, 22, 3, 19, 0, 16, 9, 25), (15, 31, 12, 28, 14, 30, 13, 29)),
        max_d=126,
        bias=125,
        step=1,
        offset=128,
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedMxfp4:
    """An MXFP4 weight [N, K], or E stacked ones [E, N, K]: 4.25 bits a weight and a byte a row.

    P is K rounded up to whole blocks. See the module for the order of bits.
    """

    data: torch.Tensor
    """uint8 [..., N, P / 2]."""
    exponents: torch.Tensor
    """uint8 [..., P / 256, N, 8]: by block, so that a tile of rows reads them in one piece."""
    scales: torch.Tensor
    """uint8 [..., N], 1 .. 253: 2 ** (byte - 127) of each row."""
    num_columns: int
    """K."""
    activations: Activations

    def __post_init__(self) -> None:
        *batch, num_rows, num_bytes = self.data.shape
        assert self.data.dtype is self.exponents.dtype is self.scales.dtype is torch.uint8
        assert num_bytes * 2 == -(-self.num_columns // MXFP4_BLOCK) * MXFP4_BLOCK
        num_blocks = num_bytes * 2 // MXFP4_BLOCK
        assert list(self.exponents.shape) == [*batch, num_blocks, num_rows, _GROUPS]
        assert list(self.scales.shape) == [*batch, num_rows]

    @property
    def shape(self) -> torch.Size:
        """[..., N, K]."""
        return torch.Size((*self.data.shape[:-1], self.num_columns))

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + self.exponents.nbytes + self.scales.nbytes

    def __getitem__(self, expert: int) -> PackedMxfp4:
        """One of the stacked weights."""
        assert self.data.dim() == 3
        return PackedMxfp4(
            data=self.data[expert],
            exponents=self.exponents[expert],
            scales=self.scales[expert],
            num_columns=self.num_columns,
            activations=self.activations,
        )

    def to(self, device: torch.device | str) -> PackedMxfp4:
        return PackedMxfp4(
            data=self.data.to(device),
            exponents=self.exponents.to(device),
            scales=self.scales.to(device),
            num_columns=self.num_columns,
            activations=self.activations,
        )

    def unpack(self) -> Mxfp4Weight:
        """The same values as stored ones: what was packed, but for groups that were lost. The
        exponent of a group of zeros is not kept."""
        form = _FORMS[self.activations]
        *batch, num_rows, num_bytes = self.data.shape
        num_groups = self.num_columns // MXFP4_GROUP
        rows = self.data.view(-1, num_bytes)
        packed = torch.empty(len(rows), num_groups * 16, dtype=torch.uint8, device=rows.device)
        origins = [form.targets.index(i) for i in range(32)]
        step = _slab_rows(rows)
        for start in range(0, len(rows), step):
            slab = slice(start, start + step)
            words = _moved(rows[slab].view(torch.int32), origins)
            halves = words.view(torch.int16).view(-1, num_bytes // 128, _WORDS, 2)
            codes = halves.transpose(2, 3).reshape(-1, num_bytes // 2).view(torch.uint8)
            packed[slab] = codes[:, : num_groups * 16]
        d = (self.exponents.transpose(-3, -2).flatten(-2).int() - form.offset) // form.step
        scales = (d + self.scales[..., None].int() - form.bias).clamp_(0, 254)
        return Mxfp4Weight(
            packed=packed.view(*batch, num_rows, -1),
            scales=scales[..., :num_groups].to(torch.uint8),
        )

    def decode(self, dtype: torch.dtype) -> torch.Tensor:
        """[..., N, K] in `dtype`; exact in bfloat16 and float32."""
        return self.unpack().decode(dtype)


def pack_mxfp4(weight: Mxfp4Weight, activations: Activations) -> tuple[PackedMxfp4, torch.Tensor]:
    """The weight for products with such activations, on its own device, and the number of lost
    groups, int64 [] there: summed over a model it is worth a line in the log.

    A group of 32 is lost, which means that its values become 0, where its exponent lies too far
    below the largest of its row: by 12 or more for "fp8", 127 for "bf16". So "bf16" loses nothing
    that was made by quantising; "fp8" loses values below 1/2700 of their row's largest, if that
    fills its own group's range. Groups of zeros do not count, whatever their exponent.
    """
    form = _FORMS[activations]
    *batch, num_rows, num_columns = weight.shape
    num_blocks = -(-num_columns // MXFP4_BLOCK)
    num_groups = num_blocks * _GROUPS
    rows = weight.packed.view(-1, num_columns // 2)
    stored = weight.scales.view(-1, num_columns // MXFP4_GROUP)
    device = rows.device
    data = torch.empty(len(rows), num_blocks * 128, dtype=torch.uint8, device=device)
    exponents = torch.empty(len(rows), num_blocks, _GROUPS, dtype=torch.uint8, device=device)
    scales = torch.empty(len(rows), dtype=torch.uint8, device=device)
    num_lost = torch.zeros((), dtype=torch.int64, device=device)
    missing = num_blocks * MXFP4_BLOCK - num_columns
    step = _slab_rows(data)
    for start in range(0, len(rows), step):
        slab = slice(start, start + step)
        # Two integers a group: sixteen bytes would be reduced one by one.
        codes = pad(rows[slab], (0, missing // 2)).view(torch.int64).view(-1, num_groups, 2)
        wanted = pad(stored[slab], (0, missing // MXFP4_GROUP)).int()
        is_used = ((codes[..., 0] | codes[..., 1]) & 0x7777777777777777) != 0
        largest = torch.where(is_used, wanted, 0).amax(dim=-1)
        scale = (largest - form.max_d + form.bias).clamp_min_(1)
        d = wanted - scale[:, None] + form.bias
        is_kept = is_used & (d >= 0)
        num_lost += (is_used & (d < 0)).sum()
        kept = torch.where(is_kept[..., None], codes, 0).view(torch.int16)
        halves = kept.view(-1, num_blocks, 2, _WORDS)
        words = halves.transpose(2, 3).reshape(-1, num_blocks * 2 * _WORDS).view(torch.int32)
        data[slab] = _moved(words, form.targets).view(torch.uint8)
        written = torch.where(is_kept, d, 0) * form.step + form.offset
        exponents[slab] = written.to(torch.uint8).view(-1, num_blocks, _GROUPS)
        scales[slab] = scale.to(torch.uint8)
    by_block = exponents.view(*batch, num_rows, num_blocks, _GROUPS).transpose(-3, -2)
    packed = PackedMxfp4(
        data=data.view(*batch, num_rows, -1),
        exponents=by_block.contiguous(),
        scales=scales.view(*batch, num_rows),
        num_columns=num_columns,
        activations=activations,
    )
    return packed, num_lost


def _moved(words: torch.Tensor, targets: Sequence[int]) -> torch.Tensor:
    """words (int32) with bit i of each at targets[i]; those that move alike move together."""
    masks: dict[int, int] = {}
    for i, target in enumerate(targets):
        masks[target - i] = masks.get(target - i, 0) | 1 << target
    out = torch.zeros_like(words)
    for distance, mask in masks.items():
        # What an arithmetic shift draws in from the left lies outside the mask.
        moved = words << distance if distance >= 0 else words >> -distance
        out |= moved.bitwise_and_(mask - 2**32 if mask >= 2**31 else mask)
    return out


def _slab_rows(data: torch.Tensor) -> int:
    """Rows to work on at a time."""
    elements = _CPU_SLAB_ELEMENTS if data.device.type == "cpu" else _GPU_SLAB_ELEMENTS
    return max(1, elements // (2 * data.shape[-1]))
