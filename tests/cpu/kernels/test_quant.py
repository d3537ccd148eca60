"""FP8 blocks and MXFP4 groups against definitions written out value by value."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.kernels.quant import (
    Fp8BlockWeight,
    Mxfp4Weight,
    RowGrid,
    encode_fp8,
    encode_mxfp4,
)


def e4m3(byte: int) -> float:
    """float8_e4m3fn from its bits: bias 7, no infinity, 0x7F and 0xFF are NaN."""
    sign = -1.0 if byte & 0x80 else 1.0
    exponent, mantissa = byte >> 3 & 15, byte & 7
    if exponent == 15 and mantissa == 7:
        return math.nan
    if exponent == 0:
        return sign * mantissa * 2.0**-9
    return sign * (8 + mantissa) * 2.0 ** (exponent - 10)


def e2m1(nibble: int) -> float:
    magnitude = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)[nibble & 7]
    return -magnitude if nibble & 8 else magnitude


def slow_scale_row(row: int, period: int) -> int:
    """Count blocks one row at a time."""
    block = -1
    for r in range(row + 1):
        if r % period == 0 or r % period % 128 == 0:
            block += 1
    return block


def random_fp8(num_rows: int, num_columns: int, num_scale_rows: int) -> Fp8BlockWeight:
    data = torch.randn(num_rows, num_columns).mul(50).to(torch.float8_e4m3fn)
    return Fp8BlockWeight(
        data=data,
        scales=torch.rand(num_scale_rows, -(-num_columns // 128)) + 0.01,
        scale_row=torch.randint(num_scale_rows, (num_rows,), dtype=torch.int32),
    )


@given(st.sampled_from([1, 64, 128, 192, 320, 384, 3392, 3712]), st.integers(1, 4))
def test_the_row_grid_restarts_every_period(period: int, periods: int) -> None:
    grid = RowGrid(period * periods, period)
    rows = grid.scale_rows()
    assert rows.dtype is torch.int32
    assert len(rows) == grid.num_rows
    assert int(rows[-1]) == grid.num_scale_rows - 1
    for row in {0, period - 1, grid.num_rows // 2, grid.num_rows - 1, min(128, period - 1)}:
        assert int(rows[row]) == slow_scale_row(row, period)


def test_the_k_proj_grid_of_v2_flash() -> None:
    grid = RowGrid(768, 192)
    assert grid.num_scale_rows == 8
    rows = grid.scale_rows().tolist()
    assert rows == [2 * (r // 192) + r % 192 // 128 for r in range(768)]
    assert (rows[127], rows[128], rows[191], rows[192], rows[320]) == (0, 1, 1, 2, 3)


def test_every_fp8_code_decodes_to_its_value() -> None:
    codes = torch.arange(256, dtype=torch.uint8).view(1, 256)
    weight = Fp8BlockWeight(
        data=codes.view(torch.float8_e4m3fn),
        scales=torch.tensor([[1.0, 0.5]]),
        scale_row=torch.zeros(1, dtype=torch.int32),
    )
    expected = torch.tensor([[e4m3(b) * (1.0 if b < 128 else 0.5) for b in range(256)]])
    assert torch.equal(weight.decode(torch.float32).nan_to_num(7e9), expected.nan_to_num(7e9))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_columns", [100, 128, 200, 384])
def test_fp8_decoding_multiplies_by_the_scale_of_row_and_column_block(
    dtype: torch.dtype, num_columns: int
) -> None:
    torch.manual_seed(num_columns)
    weight = random_fp8(50, num_columns, 6)
    decoded = weight.decode(dtype)
    for n in range(0, 50, 7):
        for k in range(0, num_columns, 13):
            scale = weight.scales[weight.scale_row[n], k // 128]
            assert decoded[n, k] == (weight.data[n, k].float() * scale).to(dtype)


def test_fp8_decoding_does_not_depend_on_the_order_of_rows() -> None:
    torch.manual_seed(0)
    weight = random_fp8(300, 256, 5)
    order = torch.randperm(300)
    moved = Fp8BlockWeight(
        data=weight.data[order], scales=weight.scales, scale_row=weight.scale_row[order]
    )
    assert torch.equal(moved.decode(torch.float32), weight.decode(torch.float32)[order])


@pytest.mark.parametrize("period", [64, 192, 384])
def test_fp8_encoding_leaves_a_code_of_448_in_every_block(period: int) -> None:
    torch.manual_seed(period)
    grid = RowGrid(384, period)
    weight = torch.randn(384, 300) * torch.rand(384, 1)
    data, scales = encode_fp8(weight, grid)
    assert scales.shape == (grid.num_scale_rows, 3)
    rows = grid.scale_rows()
    for scale_row in range(grid.num_scale_rows):
        for block in range(3):
            where = (rows == scale_row, slice(block * 128, (block + 1) * 128))
            assert data[where].float().abs().max() == 448
            assert scales[scale_row, block] == weight[where].abs().max() / 448


def test_fp8_encoding_rounds_to_the_nearest_code() -> None:
    torch.manual_seed(1)
    grid = RowGrid(256, 128)
    weight = torch.randn(256, 256)
    data, scales = encode_fp8(weight, grid)
    decoded = Fp8BlockWeight(data=data, scales=scales, scale_row=grid.scale_rows())
    # Three mantissa bits: half a step is a sixteenth of the value, or of the smallest normal.
    error = (decoded.decode(torch.float32) - weight).abs()
    by_row = scales[grid.scale_rows()].repeat_interleave(128, dim=1)
    assert (error <= weight.abs() / 16 + by_row * 2.0**-10 + 1e-6).all()


def test_a_zero_block_is_encoded_with_scale_one() -> None:
    data, scales = encode_fp8(torch.zeros(10, 128), RowGrid(10, 10))
    assert scales.tolist() == [[1.0]]
    assert not data.float().any()


def test_every_mxfp4_byte_decodes_low_nibble_first() -> None:
    packed = torch.arange(256, dtype=torch.uint8).view(16, 16)
    exponents = torch.tensor([[127 + e] for e in range(-8, 8)], dtype=torch.uint8)
    decoded = Mxfp4Weight(packed=packed, scales=exponents).decode(torch.float32)
    expected = [
        [
            value * 2.0 ** (row - 8)
            for byte in range(16 * row, 16 * row + 16)
            for value in (e2m1(byte & 15), e2m1(byte >> 4))
        ]
        for row in range(16)
    ]
    assert torch.equal(decoded, torch.tensor(expected))


def test_minus_zero_decodes_to_zero() -> None:
    weight = Mxfp4Weight(
        packed=torch.full((1, 16), 0x88, dtype=torch.uint8),
        scales=torch.full((1, 1), 127, dtype=torch.uint8),
    )
    assert not weight.decode(torch.float32).signbit().any()


def test_mxfp4_is_exact_in_bfloat16() -> None:
    torch.manual_seed(2)
    weight = Mxfp4Weight(
        packed=torch.randint(256, (64, 64), dtype=torch.uint8),
        scales=torch.randint(100, 150, (64, 4), dtype=torch.uint8),
    )
    assert torch.equal(weight.decode(torch.bfloat16).float(), weight.decode(torch.float32))


def test_mxfp4_encoding_gives_back_what_it_can_represent() -> None:
    torch.manual_seed(3)
    codes = torch.randint(16, (32, 64))
    codes[:, ::32] = 7  # every group reaches 6, so its exponent is determined
    values = torch.tensor([e2m1(code) for code in range(16)])[codes]
    weight = values * 2.0 ** torch.randint(-9, -1, (32, 2)).float().repeat_interleave(32, dim=1)
    packed, scales = encode_mxfp4(weight)
    assert torch.equal(Mxfp4Weight(packed=packed, scales=scales).decode(torch.float32), weight)


def test_mxfp4_encoding_rounds_to_the_nearest_code_and_ties_to_even() -> None:
    row = [4.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 0.26, 0.74, -0.75, -5.0, 6.0, 7.9, -7.0]
    expected = [4.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0, 0.5, 0.5, -1.0, -4.0, 6.0, 6.0, -6.0]
    weight = torch.zeros(1, 32)
    weight[0, : len(row)] = torch.tensor(row)
    packed, scales = encode_mxfp4(weight)
    assert scales.tolist() == [[127]]
    decoded = Mxfp4Weight(packed=packed, scales=scales).decode(torch.float32)
    assert decoded[0, : len(row)].tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stacked_weights_decode_as_their_experts_do(dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    single = [random_fp8(40, 200, 3) for _ in range(3)]
    stacked = Fp8BlockWeight(
        data=torch.stack([w.data for w in single]),
        scales=torch.stack([w.scales for w in single]),
        scale_row=single[0].scale_row,
    )
    mx = Mxfp4Weight(
        packed=torch.randint(256, (3, 40, 64), dtype=torch.uint8),
        scales=torch.randint(110, 130, (3, 40, 4), dtype=torch.uint8),
    )
    for weight in (stacked, mx):
        decoded = weight.decode(dtype)
        assert decoded.shape == weight.shape
        for expert in range(3):
            assert torch.equal(decoded[expert], weight[expert].decode(dtype))


def test_a_weight_counts_its_bytes() -> None:
    weight = random_fp8(256, 384, 2)
    assert weight.nbytes == 256 * 384 + 2 * 3 * 4 + 256 * 4
    mx = Mxfp4Weight(
        packed=torch.zeros(2, 8, 32, dtype=torch.uint8),
        scales=torch.zeros(2, 8, 2, dtype=torch.uint8),
    )
    assert mx.nbytes == 2 * 8 * 34
    assert mx.shape == (2, 8, 64)
