"""The two number formats of stored weights: FP8 in blocks of 128 x 128, and MXFP4 in groups of 32.

Contract, for any implementation:

FP8 (text.md 2.5). `W[n, k] = fp8(data[n, k]) * scales[scale_row[n], k // 128]`, both factors exact
in fp32, one rounding to fp32 for the product, one more to the asked dtype. Each row names its scale
row, because official files restart their scale grid in the middle of a tensor and a rank may hold
rows in any order: with the row's own index every cut is exact, with nothing quantised again.

MXFP4 (text.md 4). Byte j of a row holds elements 2j (low nibble) and 2j + 1 (high nibble), E2M1;
`W[n, k] = e2m1(n, k) * 2 ** (scales[n, k // 32] - 127)`. The value is exact in bf16. Scale byte 255
(NaN) is refused before it gets here.

`decode` gives the same bits on CPU and CUDA.
"""

from mimo_engine.kernels.quant.activations import quantise_rows, rounded_to_fp8
from mimo_engine.kernels.quant.reference import (
    FP8_BLOCK,
    FP8_MAX,
    MXFP4_GROUP,
    RowGrid,
    decode_fp8,
    decode_mxfp4,
    encode_fp8,
    encode_mxfp4,
)
from mimo_engine.kernels.quant.weights import (
    Fp8BlockWeight,
    Mxfp4Weight,
    QuantisedWeight,
    Weight,
    materialise,
    rows_per_scale,
)

__all__ = [
    "FP8_BLOCK",
    "FP8_MAX",
    "MXFP4_GROUP",
    "Fp8BlockWeight",
    "Mxfp4Weight",
    "QuantisedWeight",
    "RowGrid",
    "Weight",
    "decode_fp8",
    "decode_mxfp4",
    "encode_fp8",
    "encode_mxfp4",
    "materialise",
    "quantise_rows",
    "rounded_to_fp8",
    "rows_per_scale",
]
