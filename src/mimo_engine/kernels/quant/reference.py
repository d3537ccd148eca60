"""FP8 and MXFP4 in plain torch: the definition of both formats, on CPU and CUDA.

Decoding works in slabs of rows, so that its fp32 temporaries stay small whatever the weight.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = [
    "FP8_BLOCK",
    "FP8_MAX",
    "MXFP4_GROUP",
    "RowGrid",
    "decode_fp8",
    "decode_mxfp4",
    "encode_fp8",
    "encode_mxfp4",
]

FP8_BLOCK = 128
"""Rows and columns under one FP8 scale."""
FP8_MAX = 448.0
"""Largest finite float8_e4m3fn."""
MXFP4_GROUP = 32
"""Columns under one MXFP4 exponent."""

_E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
# Between neighbours; a tie goes to the even code.
_E2M1_MIDPOINTS = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)
_CPU_SLAB_ELEMENTS = 2**18
_GPU_SLAB_ELEMENTS = 2**24


@dataclass(frozen=True, slots=True)
class RowGrid:
    """Which scale row each of `num_rows` rows uses: blocks of 128 rows that restart every `period`
    rows (text.md 3.3). `period == num_rows` is the ordinary continuous grid.

    Row r uses scale row `r // period * ceil(period / 128) + r % period // 128`.
    """

    num_rows: int
    period: int

    def __post_init__(self) -> None:
        assert self.num_rows % self.period == 0

    @property
    def blocks_per_period(self) -> int:
        return -(-self.period // FP8_BLOCK)

    @property
    def num_scale_rows(self) -> int:
        return self.num_rows // self.period * self.blocks_per_period

    def scale_rows(self) -> torch.Tensor:
        """int32 [num_rows]."""
        row = torch.arange(self.num_rows, dtype=torch.int32)
        in_period = row % self.period
        return row // self.period * self.blocks_per_period + in_period // FP8_BLOCK

    def same_blocks(self, other: RowGrid) -> bool:
        """Whether both grids put the same rows under the same scale row."""
        return torch.equal(self.scale_rows(), other.scale_rows())


def decode_fp8(
    data: torch.Tensor, scales: torch.Tensor, scale_row: torch.Tensor, *, out: torch.Tensor
) -> None:
    """Write `data[n, k] * scales[scale_row[n], k // 128]` to `out`.

    data: float8_e4m3fn [..., N, K]; scales: float32 [..., S, ceil(K / 128)]; scale_row: int32 [N];
    out: any float dtype, [..., N, K], written in full.
    """
    if data.dim() > 2:
        for i in range(data.shape[0]):
            decode_fp8(data[i], scales[i], scale_row, out=out[i])
        return
    num_rows, num_columns = data.shape
    whole = num_columns // FP8_BLOCK * FP8_BLOCK
    # A table by code: torch's own conversion from FP8 is ten times slower on a CPU.
    codes, table = data.view(torch.uint8), _e4m3_values().to(data.device)
    step = _slab_rows(out)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        values = table.index_select(0, codes[rows].flatten().int()).view(-1, num_columns)
        by_block = scales[scale_row[rows]]
        blocks = values[:, :whole].unflatten(1, (-1, FP8_BLOCK))
        blocks *= by_block[:, : whole // FP8_BLOCK, None]
        values[:, whole:] *= by_block[:, -1:]
        out[rows] = values


def decode_mxfp4(packed: torch.Tensor, scales: torch.Tensor, *, out: torch.Tensor) -> None:
    """Write `e2m1 * 2 ** (scale - 127)` to `out`.

    packed: uint8 [..., N, K / 2]; scales: uint8 [..., N, K / 32]; out: any float dtype,
    [..., N, K], written in full.
    """
    if packed.dim() > 2:
        for i in range(packed.shape[0]):
            decode_mxfp4(packed[i], scales[i], out=out[i])
        return
    pairs = _e2m1_pairs().to(packed.device)
    powers = _powers_of_two().to(packed.device)
    num_rows, num_columns = out.shape
    step = _slab_rows(out)
    for start in range(0, num_rows, step):
        rows = slice(start, start + step)
        values = pairs.index_select(0, packed[rows].flatten().int()).view(-1, MXFP4_GROUP)
        values *= powers.index_select(0, scales[rows].flatten().int())[:, None]
        out[rows] = values.view(-1, num_columns)


def encode_fp8(weight: torch.Tensor, grid: RowGrid) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise `weight` [N, K] on `grid`: (float8_e4m3fn [N, K], float32 [S, ceil(K / 128)]).

    Scale = amax / 448 of its block, so the largest code of a block is 448; 1 where a block is zero.
    """
    num_rows, num_columns = weight.shape
    assert num_rows == grid.num_rows
    data = torch.empty(num_rows, num_columns, dtype=torch.float8_e4m3fn, device=weight.device)
    num_column_blocks = -(-num_columns // FP8_BLOCK)
    scales = torch.empty(grid.num_scale_rows, num_column_blocks, device=weight.device)
    for scale_row in range(grid.num_scale_rows):
        chunk, block = divmod(scale_row, grid.blocks_per_period)
        start = chunk * grid.period + block * FP8_BLOCK
        rows = slice(start, min(start + FP8_BLOCK, (chunk + 1) * grid.period))
        values = weight[rows].float()
        padded = torch.nn.functional.pad(values, (0, num_column_blocks * FP8_BLOCK - num_columns))
        amax = padded.abs().view(len(values), num_column_blocks, FP8_BLOCK).amax(dim=(0, 2))
        # In double: CUDA divides a float by a constant through its reciprocal, a bit off the CPU.
        scale = torch.where(amax > 0, amax.double() / FP8_MAX, 1.0).float()
        by_column = scale.repeat_interleave(FP8_BLOCK)[:num_columns]
        data[rows] = (values / by_column).clamp_(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
        scales[scale_row] = scale
    return data, scales


def encode_mxfp4(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise `weight` [N, K], K a multiple of 32: (uint8 [N, K / 2], uint8 [N, K / 32]).

    The exponent puts the largest magnitude of a group at 4 ... 8 (6 is the largest code, more
    saturates); values round to the nearest code, ties to the even one.
    """
    num_rows, num_columns = weight.shape
    assert num_columns % MXFP4_GROUP == 0
    groups = weight.float().view(num_rows, -1, MXFP4_GROUP)
    # frexp: amax = m * 2 ** e with m in [0.5, 1), so amax * 2 ** (3 - e) is in [4, 8).
    exponent = torch.frexp(groups.abs().amax(dim=-1)).exponent - 3
    stored = (exponent + 127).clamp(0, 254)
    scaled = groups / _powers_of_two().to(weight.device)[stored][..., None]
    midpoints = torch.tensor(_E2M1_MIDPOINTS, device=weight.device)
    magnitude = scaled.abs()
    below = torch.bucketize(magnitude, midpoints, right=False)
    above = torch.bucketize(magnitude, midpoints, right=True)
    # On a midpoint the two differ by one: take the even code.
    code = torch.where(below % 2 == 0, below, above).to(torch.uint8)
    code |= (scaled < 0).to(torch.uint8) << 3
    code = code.view(num_rows, num_columns)
    return code[:, 0::2] | (code[:, 1::2] << 4), stored.to(torch.uint8)


def _slab_rows(out: torch.Tensor) -> int:
    """Rows to decode at a time: what a CPU's cache holds, or enough to fill a GPU."""
    elements = _CPU_SLAB_ELEMENTS if out.device.type == "cpu" else _GPU_SLAB_ELEMENTS
    return max(1, elements // out.shape[-1])


def _e4m3_values() -> torch.Tensor:
    """float32 [256]: the value of each code, NaN for 0x7f and 0xff."""
    return torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()


def _e2m1_pairs() -> torch.Tensor:
    """float32 [256, 2]: the two values of a byte, low nibble first; -0 decodes to 0."""
    values = torch.tensor([*_E2M1_MAGNITUDES, *(0.0 - m for m in _E2M1_MAGNITUDES)])
    byte = torch.arange(256)
    return torch.stack((values[byte & 15], values[byte >> 4]), dim=1)


def _powers_of_two() -> torch.Tensor:
    """float32 [256]: 2 ** (byte - 127); NaN for 255."""
    return torch.tensor([2.0 ** (byte - 127) for byte in range(255)] + [float("nan")])
