"""MXFP4 weights packed for the experts' kernels, and the few instructions that decode them."""

import ptx
import pytest
import torch
import triton
import triton.language as tl
from kernel_place import ON_GPU

from mimo_engine.kernels.quant import Mxfp4Weight, mxfp4
from mimo_engine.kernels.quant.mxfp4 import HAS_ASSEMBLY, decoded
from mimo_engine.kernels.quant.mxfp4_layout import PackedMxfp4, pack_mxfp4

KINDS = ("fp8", "bf16")
BITS = {torch.float8_e4m3fn: torch.uint8, torch.bfloat16: torch.int16}
# Only on a GPU are there layouts, which could differ.
TILES = [(64, 4), (128, 4), (128, 8), (256, 8)] if ON_GPU else [(64, 4)]
MAGNITUDES = torch.tensor((0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0))
# The bytes of a group that a kernel reads, and the power of two that each stands for.
GROUP_BYTES = {"fp8": range(0, 96, 8), "bf16": range(128, 255)}
POWERS = {"fp8": range(-5, 7), "bf16": range(-125, 2)}


def random_weight(*shape, lowest=110, highest=121, device="cpu"):
    *rows, size = shape
    return Mxfp4Weight(
        packed=torch.randint(256, (*rows, size // 2), dtype=torch.uint8, device=device),
        scales=torch.randint(
            lowest, highest + 1, (*rows, size // 32), dtype=torch.uint8, device=device
        ),
    )


def powers_of_two(exponents):
    """[N, 32 G] float32 for exponents [N, G]."""
    return torch.ldexp(torch.ones(exponents.shape), exponents).repeat_interleave(32, dim=-1)


def signed_values(weight):
    """[N, K] float32, in which a code of -0 is -0."""
    codes = torch.stack((weight.packed & 15, weight.packed >> 4), dim=-1).flatten(-2).long()
    values = MAGNITUDES[codes.cpu() & 7] * powers_of_two(weight.scales.cpu().int() - 127)
    return torch.where(codes.cpu() >= 8, -values, values)


@triton.jit
def decode_all(
    data_ptr,
    exponent_ptr,
    out_ptr,
    TILE: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_ASM: tl.constexpr,
):
    rows = tl.program_id(0) * TILE + tl.arange(0, TILE)
    columns = tl.arange(0, 128)
    data = tl.load(data_ptr + rows[:, None] * 128 + columns[None, :])
    exponents = tl.load(exponent_ptr + rows)
    outputs = out_ptr + rows[:, None] * 256 + columns[None, :]
    tl.store(outputs, decoded(data, exponents, 0, TILE, IS_FP8, IS_ASM))
    tl.store(outputs + 128, decoded(data, exponents, 1, TILE, IS_FP8, IS_ASM))


def decoded_by_kernel(packed, tile, num_warps, is_asm):
    """[N, 256] of weights [N, 256] without the rows' scales; N a multiple of the tile."""
    is_fp8 = packed.activations == "fp8"
    dtype = torch.float8_e4m3fn if is_fp8 else torch.bfloat16
    out = torch.empty(packed.shape, dtype=dtype, device=packed.data.device)
    exponents = packed.exponents.view(torch.int64)
    decode_all[(packed.shape[0] // tile,)](
        packed.data, exponents, out, TILE=tile, IS_FP8=is_fp8, IS_ASM=is_asm, num_warps=num_warps
    )
    return out


def words_of_every_byte(kind, device):
    """Weights [N, 256] in which every byte stands at every place of a word, among random others,
    with every exponent of its group, and neighbouring groups differ."""
    num_powers = len(GROUP_BYTES[kind])
    words = torch.randint(256, (4, 256, 4), dtype=torch.uint8)
    for place in range(4):
        words[place, :, place] = torch.arange(256, dtype=torch.uint8)
    data = words.view(32, 128).repeat(num_powers, 1)
    row, group = torch.arange(len(data))[:, None], torch.arange(8)[None, :]
    choice = (row // 32 + 5 * row + 3 * group) % num_powers
    exponents = torch.tensor(GROUP_BYTES[kind], dtype=torch.uint8)[choice][None]
    padding = -len(data) % 256
    return PackedMxfp4(
        data=torch.nn.functional.pad(data, (0, 0, 0, padding)).to(device),
        exponents=torch.nn.functional.pad(exponents, (0, 0, 0, padding), value=128).to(device),
        scales=torch.full((len(data) + padding,), 127, dtype=torch.uint8, device=device),
        num_columns=256,
        activations=kind,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("tile", "num_warps"), TILES)
@pytest.mark.parametrize("is_asm", [False, True] if HAS_ASSEMBLY else [False])
def test_every_byte_decodes_to_its_bits(kind, tile, num_warps, is_asm, device, poisoned) -> None:
    torch.manual_seed(0)
    packed = words_of_every_byte(kind, device)
    got = decoded_by_kernel(packed, tile, num_warps, is_asm)
    expected = signed_values(packed.unpack()).to(got.dtype)
    bits = BITS[got.dtype]
    assert torch.equal(got.cpu().view(bits), expected.view(bits))


def decoded_by_ptx(packed):
    """As `decoded_by_kernel`, from the PTX without a GPU."""
    is_fp8 = packed.activations == "fp8"
    words = packed.data.view(torch.int32).view(-1, 4, 8).long()
    group = torch.arange(4)
    halves = []
    for half in range(2):
        exponents = packed.exponents[0].view(torch.int32)[:, half].long()[:, None]
        if is_fp8:
            low, high = ptx.run(mxfp4.FP8_PREPARE, 2, exponents, group * 0x1111)
            asm = mxfp4.FP8_SECOND if half else mxfp4.FP8_FIRST
            operands = [low[..., None]] * 4 + [high[..., None]] * 4
        else:
            (factor,) = ptx.run(mxfp4.BF16_PREPARE, 1, exponents, group * 0x1010 + 0x0404)
            asm = mxfp4.BF16_SECOND if half else mxfp4.BF16_FIRST
            operands = [factor[..., None]] * 4
        results = torch.stack(ptx.run(asm, 1 if is_fp8 else 2, words, *operands), dim=-1)
        results = results - (results >> 31 << 32)
        halves.append(results.int().view(len(words), -1))
    dtype = torch.float8_e4m3fn if is_fp8 else torch.bfloat16
    return torch.cat(halves, dim=1).view(dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_the_ptx_decodes_every_byte_to_its_bits(kind, poisoned) -> None:
    torch.manual_seed(0)
    packed = words_of_every_byte(kind, torch.device("cpu"))
    got = decoded_by_ptx(packed)
    expected = signed_values(packed.unpack()).to(got.dtype)
    bits = BITS[got.dtype]
    assert torch.equal(got.view(bits), expected.view(bits))


@pytest.mark.parametrize("kind", KINDS)
def test_each_code_is_itself_times_its_groups_power(kind, device, poisoned) -> None:
    """Through packing, with no help from unpacking: 16 codes under every exponent."""
    powers = torch.tensor(POWERS[kind])
    codes = torch.arange(16).repeat(16).view(128, 2)
    bytes_ = (codes[:, 0] | codes[:, 1] << 4).to(torch.uint8)
    # The first group has the largest exponent, and says so.
    exponents = torch.full((len(powers), 8), int(powers[-1]) + 127)
    exponents[:, 1:] = powers[:, None] + 127
    weight = Mxfp4Weight(
        packed=bytes_.repeat(len(powers), 1).to(device),
        scales=exponents.clamp_min(0).to(torch.uint8).to(device),
    )
    packed, num_lost = pack_mxfp4(weight, kind)
    assert num_lost == 0
    assert (packed.scales == 127).all()
    padding = -len(powers) % 64
    whole = PackedMxfp4(
        data=torch.nn.functional.pad(packed.data, (0, 0, 0, padding)),
        exponents=torch.nn.functional.pad(packed.exponents, (0, 0, 0, padding), value=128),
        scales=torch.nn.functional.pad(packed.scales, (0, padding)),
        num_columns=256,
        activations=kind,
    )
    got = decoded_by_kernel(whole, 64, 4, HAS_ASSEMBLY)[: len(powers)].cpu().float()
    sign = torch.where(codes.flatten() >= 8, -1.0, 1.0)
    expected = sign * MAGNITUDES[codes.flatten() & 7] * powers_of_two(exponents - 127)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(7, 32), (3, 5, 96), (2, 192), (2, 3, 256), (1, 4096, 576)])
def test_unpacking_gives_the_values_that_were_packed(kind, shape, device, poisoned) -> None:
    torch.manual_seed(0)
    weight = random_weight(*shape, highest=121 if kind == "fp8" else 230, device=device)
    packed, num_lost = pack_mxfp4(weight, kind)
    assert num_lost == 0
    assert packed.shape == weight.shape
    expected = weight.decode(torch.float32)
    assert torch.equal(packed.decode(torch.float32), expected)
    if len(shape) == 3:
        assert torch.equal(packed[shape[0] - 1].decode(torch.float32), expected[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("largest", [0, 1, 5, 6, 7, 12, 127, 253, 254])
def test_all_exponents_of_the_format_fit(kind, largest) -> None:
    weight = random_weight(4, 256, lowest=max(0, largest - 11), highest=largest)
    packed, num_lost = pack_mxfp4(weight, kind)
    assert num_lost == 0
    assert packed.scales.min() >= 1
    assert torch.equal(packed.decode(torch.float64), weight.decode(torch.float64))


@pytest.mark.parametrize(("kind", "distance"), [("fp8", 12), ("bf16", 127)])
def test_groups_far_below_their_rows_largest_become_zero_and_are_counted(kind, distance) -> None:
    weight = random_weight(3, 512, lowest=200, highest=200)
    weight.packed[:] |= 0x11
    weight.scales[1, 2] = 200 - distance
    weight.scales[1, 3] = 200 - distance + 1
    weight.scales[2, 15] = 200 - distance - 1
    expected = weight.decode(torch.float32)
    expected[1, 64:96] = 0
    expected[2, 480:] = 0
    packed, num_lost = pack_mxfp4(weight, kind)
    assert num_lost == 2
    assert torch.equal(packed.decode(torch.float32), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_exponents_of_zeros_neither_count_nor_crowd_out_others(kind) -> None:
    weight = random_weight(3, 256, lowest=60, highest=64)
    weight.packed.view(3, 8, 16)[0, 3] = 0x80
    weight.packed.view(3, 8, 16)[1] = 0
    weight.scales[0, 3] = 254
    weight.scales[1] = torch.arange(0, 240, 30)
    packed, num_lost = pack_mxfp4(weight, kind)
    assert num_lost == 0
    assert torch.equal(packed.decode(torch.float32), weight.decode(torch.float32))


def test_a_weight_takes_four_and_a_quarter_bits_and_a_row_a_byte() -> None:
    weight = random_weight(2, 8, 512)
    packed, _ = pack_mxfp4(weight, "fp8")
    assert packed.nbytes == 2 * 8 * (512 * 17 // 32 + 1)
