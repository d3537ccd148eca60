"""Where Triton's interpreter (3.9) does not compute what a GPU does, and what is done about it.

It keeps bfloat16 as 16 bits of integer, so a product of two bfloat16 tensors multiplies those
integers; it cuts float32 to bfloat16 where a GPU rounds to nearest, and misses the nearest FP8 code
now and then. All are repaired. Its elementwise bfloat16 arithmetic is wrong too: kernels convert to
float32 after every load.
"""

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter


def apply():
    builder = interpreter.InterpreterBuilder
    cut = builder.create_fp_trunc
    convert = builder.create_fp_to_fp

    def dot(self, a, b, accumulator, *_):
        product = np.matmul(_as_float32(a), _as_float32(b))
        return interpreter.TensorHandle(
            (product + accumulator.data).astype(accumulator.data.dtype), accumulator.dtype.scalar
        )

    def round_or_cut(self, source, target):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.bfloat16:
            return interpreter.TensorHandle(_to_bfloat16(source.data), tl.bfloat16)
        return cut(self, source, target)

    def to_or_from_fp8(self, source, target, rounding):
        if source.dtype.scalar == tl.float32 and target.scalar == tl.float8e4nv:
            return interpreter.TensorHandle(_to_e4m3(source.data), tl.float8e4nv)
        return convert(self, source, target, rounding)

    builder.create_dot = dot
    builder.create_fp_trunc = round_or_cut
    builder.create_fp_to_fp = to_or_from_fp8


def _as_float32(handle):
    kind = handle.dtype.scalar
    if kind == tl.bfloat16:
        return (handle.data.astype(np.uint32) << 16).view(np.float32)
    if kind.is_fp8():
        half = interpreter._convert_float(handle.data, kind, tl.float16, None)
        return half.view(np.float16).astype(np.float32)
    return handle.data.astype(np.float32)


def _to_bfloat16(values):
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32).astype(np.uint64)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(values.shape)


def _to_e4m3(values):
    """To the nearest code, and to the largest beyond it."""
    limited = torch.from_numpy(np.ascontiguousarray(values, np.float32)).clamp(-448, 448)
    return limited.to(torch.float8_e4m3fn).view(torch.uint8).numpy()
