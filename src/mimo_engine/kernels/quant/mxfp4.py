"""Decoding MXFP4 inside kernels, from the order of quant/mxfp4_layout.py.

Written in PTX that sm_80 and later have: four neighbouring bytes of a row are one word, and give
four values of the wanted half of the block in some 4 instructions for FP8, 8 for bfloat16. The
plain form computes the same bits, for Triton's interpreter.
"""

from __future__ import annotations

import triton
import triton.language as tl

__all__ = [
    "BF16_FIRST",
    "BF16_PREPARE",
    "BF16_SECOND",
    "FP8_FIRST",
    "FP8_PREPARE",
    "FP8_SECOND",
    "HAS_ASSEMBLY",
    "decoded",
]

HAS_ASSEMBLY = not triton.knobs.runtime.interpret
"""Whether kernels can use the PTX here."""

# A group's exponent: its byte is picked from four by a selector. For FP8 it becomes all bytes of a
# word, which is added to the tables of codes 0 .. 3 and 4 .. 7, where the code of zero stays 0; for
# bfloat16 the exponent fields of two factors.
FP8_PREPARE = tl.constexpr(
    "{ .reg .b32 e; prmt.b32 e, $2, 0, $3; add.u32 $1, e, 0x24201c18;"
    " and.b32 e, e, 0xffffff00; add.u32 $0, e, 0x14100800; }"
)
BF16_PREPARE = tl.constexpr("{ .reg .b32 e; prmt.b32 e, $1, 0, $2; shr.u32 $0, e, 1; }")

# Values: results, the four bytes, then what the exponent became, given four times as it is the same
# for all four. The tables are looked up, or values cut out and multiplied; the signs are put in.
FP8_FIRST = tl.constexpr(
    "{ .reg .b32 s; and.b32 s, $1, 0x77777777; prmt.b32 $0, $2, $6, s;"
    " lop3.b32 $0, $1, 0x80808080, $0, 0xea; }"
)
FP8_SECOND = tl.constexpr(
    "{ .reg .b32 s, t; and.b32 s, $1, 0x77777777; shr.u32 s, s, 16; prmt.b32 $0, $2, $6, s;"
    " shl.b32 t, $1, 4; lop3.b32 $0, t, 0x80808080, $0, 0xea; }"
)
BF16_FIRST = tl.constexpr(
    "{ .reg .b32 t, z; mov.b32 z, 0x80008000; and.b32 $0, $2, 0x81c081c0;"
    " shl.b32 t, $2, 3; and.b32 $1, t, 0x81c081c0;"
    " fma.rn.bf16x2 $0, $0, $3, z; fma.rn.bf16x2 $1, $1, $3, z; }"
)
BF16_SECOND = tl.constexpr(
    "{ .reg .b32 t, s, z; mov.b32 z, 0x80008000;"
    " shl.b32 t, $2, 6; and.b32 t, t, 0x01c001c0; shl.b32 s, $2, 1; lop3.b32 $0, s, z, t, 0xea;"
    " shr.u32 t, $2, 3; and.b32 t, t, 0x01c001c0; shl.b32 s, $2, 2; lop3.b32 $1, s, z, t, 0xea;"
    " fma.rn.bf16x2 $0, $0, $3, z; fma.rn.bf16x2 $1, $1, $3, z; }"
)


@triton.jit
def _spread(x, TILE: tl.constexpr):
    """x [TILE, 4], by group, for each of 128 columns."""
    return tl.reshape(tl.broadcast_to(x[:, :, None], (TILE, 4, 32)), (TILE, 128))


@triton.jit
def decoded(
    data,
    exponents,
    HALF: tl.constexpr,
    TILE: tl.constexpr,
    IS_FP8: tl.constexpr,
    IS_ASM: tl.constexpr,
):
    """Half 0 or 1 of a block of TILE rows: [TILE, 128] float8e4nv or bfloat16.

    data [TILE, 128] uint8 and exponents [TILE] int64, eight bytes a row, as `PackedMxfp4` has them.
    """
    if IS_ASM:
        group = tl.arange(0, 4)
        own = tl.broadcast_to((exponents >> (32 * HALF)).to(tl.int32)[:, None], (TILE, 4))
        if IS_FP8:
            choice = tl.broadcast_to((group * 0x1111)[None, :], (TILE, 4))
            low, high = tl.inline_asm_elementwise(
                FP8_PREPARE, "=&r,=r,r,r", [own, choice], (tl.int32, tl.int32), True, 1
            )
            codes = tl.inline_asm_elementwise(
                FP8_SECOND if HALF else FP8_FIRST,
                "=&r,r,r,r,r,r,r,r,r,r",
                [data, _spread(low, TILE), _spread(high, TILE)],
                tl.uint8,
                True,
                4,
            )
            return codes.to(tl.float8e4nv, bitcast=True)
        else:
            # The byte as the upper half of both 16 bits, which the shift makes exponent fields.
            choice = tl.broadcast_to((group * 0x1010 + 0x0404)[None, :], (TILE, 4))
            factor = tl.inline_asm_elementwise(
                BF16_PREPARE, "=r,r,r", [own, choice], tl.int32, True, 1
            )
            return tl.inline_asm_elementwise(
                BF16_SECOND if HALF else BF16_FIRST,
                "=&r,=&r,r,r,r,r,r",
                [data, _spread(factor, TILE)],
                tl.bfloat16,
                True,
                4,
            )
    else:
        return _decoded_plainly(data, exponents, HALF, TILE, IS_FP8)


@triton.jit
def _decoded_plainly(data, exponents, HALF: tl.constexpr, TILE: tl.constexpr, IS_FP8: tl.constexpr):
    place = tl.arange(0, 4)
    group = tl.arange(0, 4)
    parts = tl.reshape(data, (TILE, 32, 4)).to(tl.int64) << (8 * place)[None, None, :]
    words = tl.sum(parts, axis=2)[:, :, None]
    if IS_FP8:
        magnitude_place = 4 * place + 16 * HALF
        sign_place = 8 * place + 7 - 4 * HALF
    else:
        pair, side = place // 2, place % 2 * 16
        magnitude_place = side + (9 * pair if HALF else 6 - 3 * pair)
        sign_place = side + (14 - pair if HALF else 15 - 3 * pair)
    magnitude = ((words >> magnitude_place[None, None, :]) & 7).to(tl.int32)
    magnitude = tl.reshape(magnitude, (TILE, 128))
    sign = tl.reshape(((words >> sign_place[None, None, :]) & 1).to(tl.int32), (TILE, 128))
    own = (exponents[:, None] >> (32 * HALF + 8 * group)[None, :]) & 255
    exponent = _spread(own.to(tl.int32), TILE)
    if IS_FP8:
        code = tl.where(magnitude > 1, 8 + 4 * magnitude, 8) + exponent
        code = tl.where(magnitude > 0, code, 0) | sign << 7
        return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)
    else:
        power = tl.maximum(magnitude >> 1, 1) - 1
        twice = tl.where(magnitude > 1, (2 + (magnitude & 1)) << power, magnitude)
        value = twice.to(tl.float32) * ((exponent - 127) << 23).to(tl.float32, bitcast=True)
        return tl.where(sign > 0, -value, value).to(tl.bfloat16)
