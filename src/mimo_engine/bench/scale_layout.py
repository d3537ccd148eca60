"""Which representation of FP8 scales is fastest in a decode GEMM? Measured on a Hopper GPU.

Official qkv tensors restart their scale grid inside the tensor (text.md 3.3), so once heads are in
canonical order a 128-row tile of the kernel need not lie under one scale row. Ways out, all exact:

    tile           pad every segment to its phase in the grid: a scalar scale a tile, more rows
    tile-chunked   the same without reordering heads: fewer extra rows, TP degrees up to T only
    rows           one fp32 scale per row and 128 columns, [N, K / 128]
    rows-t         the same, stored [K / 128, N]
    gather         the file's compact scales and an int32 scale row for each row

Each variant is first compared with a plain torch reference, then timed in a CUDA graph that walks
through copies of the weight larger than the L2 cache together. The GEMM has swapped operands: the
weight is the left one, 16 tokens (activations in FP8, one scale per token and 128 columns) the
right one. GB/s counts the bytes that every variant must read, weight and compact scales, so padding
and wider scales show as lost bandwidth. Prints a table, then one JSON line. Needs torch and triton
alone: `python scale_layout.py`.
"""

# Triton comes with the CUDA builds of torch only, and its kernels are not typed Python.
# pyright: reportMissingImports=false, reportIndexIssue=false
# ruff: noqa: ANN001, ANN201

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl

NUM_TOKENS = 16
BLOCK = 128
MEASURED_COPY_BYTES_PER_S = 4.3e12
L2_FLUSH_BYTES = 400e6
NUM_REPLAYS = 60
# Each accumulates 128 columns in the tensor core (about 14 bits), then in fp32.
TOLERANCE = 5e-3

TILE, ROWS, ROWS_T, GATHER = 0, 1, 2, 3


@triton.jit
def scaled_gemm(
    w_ptr, x_ptr, ws_ptr, row_ptr, xs_ptr, y_ptr, n, k,
    VARIANT: tl.constexpr, BLOCK_N: tl.constexpr, NUM_TOKENS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """y[split, N, 16] = sum over this split's K of fp8 W [N, K] and fp8 X [16, K], both scaled."""
    pid = tl.program_id(0)
    split = tl.program_id(1)
    num_blocks = k // 128
    rows = pid * BLOCK_N + tl.arange(0, BLOCK_N)
    tokens = tl.arange(0, NUM_TOKENS)
    columns = tl.arange(0, 128)
    mask = rows < n
    w_ptrs = w_ptr + rows.to(tl.int64)[:, None] * k + columns[None, :]
    x_ptrs = x_ptr + tokens[None, :] * k + columns[:, None]
    scale_row = rows
    if VARIANT == 3:
        scale_row = tl.load(row_ptr + rows, mask=mask, other=0)
    acc = tl.zeros((BLOCK_N, NUM_TOKENS), dtype=tl.float32)
    per_split = tl.cdiv(num_blocks, SPLITS)
    first = split * per_split
    last = tl.minimum(first + per_split, num_blocks)
    for b in range(first, last):
        w = tl.load(w_ptrs + b * 128, mask=mask[:, None], other=0.0)
        x = tl.load(x_ptrs + b * 128)
        x_scale = tl.load(xs_ptr + b * NUM_TOKENS + tokens)
        product = tl.dot(w, x, out_dtype=tl.float32)
        if VARIANT == 0:
            w_scale = tl.load(ws_ptr + (pid * BLOCK_N // 128) * num_blocks + b)
            acc += product * (x_scale * w_scale)[None, :]
        else:
            if VARIANT == 1:
                w_scale = tl.load(ws_ptr + rows * num_blocks + b, mask=mask, other=0.0)
            elif VARIANT == 2:
                w_scale = tl.load(ws_ptr + b * n + rows, mask=mask, other=0.0)
            else:
                w_scale = tl.load(ws_ptr + scale_row * num_blocks + b, mask=mask, other=0.0)
            acc += product * w_scale[:, None] * x_scale[None, :]
    y_ptrs = y_ptr + (split * n + rows)[:, None].to(tl.int64) * NUM_TOKENS + tokens[None, :]
    tl.store(y_ptrs, acc, mask=mask[:, None])


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """A full-attention fused qkv: `num_kv_heads` chunks of one K and one V head each."""

    name: str
    num_heads: int
    num_kv_heads: int
    hidden: int

    @property
    def chunk_rows(self) -> int:
        return self.num_heads // self.num_kv_heads * 192 + 192 + 128

    @property
    def num_rows(self) -> int:
        return self.num_kv_heads * self.chunk_rows


@dataclass(frozen=True, kw_only=True)
class Operand:
    """One variant's weight. `place[i]` is where canonical row i went."""

    name: str
    kind: int
    data: torch.Tensor
    scales: torch.Tensor
    scale_row: torch.Tensor
    place: torch.Tensor


@dataclass(frozen=True, kw_only=True)
class Launch:
    block_n: int
    num_warps: int
    num_stages: int
    splits: int


LAUNCHES = [
    Launch(block_n=block_n, num_warps=num_warps, num_stages=num_stages, splits=splits)
    for block_n, num_warps in ((64, 4), (128, 4), (128, 8))
    for num_stages in (4, 6)
    for splits in (1, 2, 4)
]


def stored_weight(geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A random weight in file order: fp8 data, compact scales, scale row of each row."""
    rows = torch.arange(geometry.num_rows, device="cuda")
    in_chunk = rows % geometry.chunk_rows
    per_chunk = -(-geometry.chunk_rows // BLOCK)
    scale_row = rows // geometry.chunk_rows * per_chunk + in_chunk // BLOCK
    data = torch.randn(geometry.num_rows, geometry.hidden, device="cuda") * 60
    num_scale_rows = geometry.num_kv_heads * per_chunk
    scales = torch.rand(num_scale_rows, geometry.hidden // BLOCK, device="cuda") + 0.5
    return data.clamp(-448, 448).to(torch.float8_e4m3fn), scales / 1000, scale_row.int()


def canonical_order(geometry: Geometry) -> torch.Tensor:
    """Stored row of each canonical row: all Q, then all K, then all V."""
    rows = torch.arange(geometry.num_rows, device="cuda").view(geometry.num_kv_heads, -1)
    query_rows = geometry.chunk_rows - 192 - 128
    q, k, v = rows.split((query_rows, 192, 128), dim=1)
    return torch.cat((q.flatten(), k.flatten(), v.flatten()))


def padded_to_tiles(
    name: str,
    order: torch.Tensor,
    geometry: Geometry,
    stored: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
) -> Operand:
    """Rows in `order`, each at its phase of a 128-row tile that has one scale row."""
    data, scales, scale_row = stored
    ordered = scale_row[order]
    tile_scale_row, tile = torch.unique_consecutive(ordered, return_inverse=True)
    place = tile * BLOCK + order % geometry.chunk_rows % BLOCK
    padded = torch.zeros(len(tile_scale_row) * BLOCK, data.shape[1], device="cuda")
    padded[place] = data[order].float()
    # `place` follows `order`; the checks want it by canonical row.
    by_stored_row = torch.empty_like(place)
    by_stored_row[order] = place
    return Operand(
        name=name,
        kind=TILE,
        data=padded.to(torch.float8_e4m3fn),
        scales=scales[tile_scale_row].contiguous(),
        scale_row=scale_row,
        place=by_stored_row[canonical_order(geometry)],
    )


def operands(
    geometry: Geometry, stored: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
) -> list[Operand]:
    data, scales, scale_row = stored
    order = canonical_order(geometry)
    in_order = scale_row[order].contiguous()
    gather = Operand(
        name="gather",
        kind=GATHER,
        data=data[order].contiguous(),
        scales=scales,
        scale_row=in_order,
        place=torch.arange(geometry.num_rows, device="cuda"),
    )
    by_row = scales[in_order].contiguous()
    file_order = torch.arange(geometry.num_rows, device="cuda")
    return [
        padded_to_tiles("tile", order, geometry, stored),
        padded_to_tiles("tile-chunked", file_order, geometry, stored),
        replace(gather, name="rows", kind=ROWS, scales=by_row),
        replace(gather, name="rows-t", kind=ROWS_T, scales=by_row.t().contiguous()),
        gather,
    ]


def run(
    operand: Operand,
    data: torch.Tensor,
    x: torch.Tensor,
    x_scales: torch.Tensor,
    partial: torch.Tensor,
    launch: Launch,
) -> torch.Tensor:
    """One GEMM into `partial` [splits, N, 16]; the sum over the splits belongs to it."""
    n, k = data.shape
    scaled_gemm[(triton.cdiv(n, launch.block_n), launch.splits)](
        data, x, operand.scales, operand.scale_row, x_scales, partial, n, k,
        VARIANT=operand.kind, BLOCK_N=launch.block_n, NUM_TOKENS=NUM_TOKENS, SPLITS=launch.splits,
        num_warps=launch.num_warps, num_stages=launch.num_stages,
    )  # fmt: skip
    return partial.sum(0) if launch.splits > 1 else partial[0]


def time_us(
    operand: Operand,
    copies: list[torch.Tensor],
    x: torch.Tensor,
    x_scales: torch.Tensor,
    launch: Launch,
) -> float:
    """Median microseconds of one GEMM, weights cold in L2."""
    partial = torch.empty(launch.splits, len(copies[0]), NUM_TOKENS, device="cuda")
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(2):
            run(operand, copies[0], x, x_scales, partial, launch)
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for data in copies:
            run(operand, data, x, x_scales, partial, launch)
    times = []
    for _ in range(NUM_REPLAYS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1000 / len(copies))
    return statistics.median(times[NUM_REPLAYS // 6 :])


def check(
    operand: Operand,
    expected: torch.Tensor,
    x: torch.Tensor,
    x_scales: torch.Tensor,
    launch: Launch,
) -> float:
    """Largest error as a share of the largest output; raises above TOLERANCE."""
    num_rows = len(operand.data)
    partial = torch.full((launch.splits, num_rows, NUM_TOKENS), float("nan"), device="cuda")
    got = run(operand, operand.data, x, x_scales, partial, launch)[operand.place]
    error = float((got.double() - expected).abs().max() / expected.abs().max())
    # `not <=` also catches NaN.
    if not error <= TOLERANCE:
        raise SystemExit(f"{operand.name} {launch}: error {error:.2e} exceeds {TOLERANCE:.0e}")
    return error


def measure(geometry: Geometry) -> list[dict[str, object]]:
    stored = stored_weight(geometry)
    data, scales, scale_row = stored
    num_blocks = geometry.hidden // BLOCK
    x = (torch.randn(NUM_TOKENS, geometry.hidden, device="cuda") * 60).clamp(-448, 448)
    x = x.to(torch.float8_e4m3fn)
    x_scales = torch.rand(num_blocks, NUM_TOKENS, device="cuda") + 0.5
    w_real = data.double() * scales[scale_row].double().repeat_interleave(BLOCK, dim=1)
    x_real = x.double() * x_scales.t().double().repeat_interleave(BLOCK, dim=1)
    expected = (w_real @ x_real.t())[canonical_order(geometry)]
    del w_real
    required_bytes = data.numel() + scales.numel() * 4
    results = []
    for operand in operands(geometry, stored):
        error = max(check(operand, expected, x, x_scales, launch) for launch in LAUNCHES)
        num_copies = max(2, round(L2_FLUSH_BYTES / operand.data.numel()))
        copies = [operand.data.clone() for _ in range(num_copies)]
        timed = [(time_us(operand, copies, x, x_scales, launch), launch) for launch in LAUNCHES]
        best_us, best = min(timed, key=lambda item: item[0])
        results.append(
            {
                "shape": geometry.name,
                "n": geometry.num_rows,
                "k": geometry.hidden,
                "variant": operand.name,
                "rows_held": len(operand.data),
                "scale_bytes": operand.scales.numel() * 4,
                "us": round(best_us, 2),
                "gb_per_s": round(required_bytes / best_us / 1e3),
                "share": round(required_bytes / best_us * 1e6 / MEASURED_COPY_BYTES_PER_S, 3),
                "error": error,
                "launch": vars(best),
            }
        )
        del copies
    return results


def main() -> None:
    torch.manual_seed(0)
    results: list[dict[str, object]] = []
    for geometry in (
        Geometry(name="V2.5 full", num_heads=64, num_kv_heads=4, hidden=4096),
        Geometry(name="Pro", num_heads=128, num_kv_heads=8, hidden=6144),
    ):
        results += measure(geometry)
    columns = ("shape", "variant", "rows_held", "scale_bytes", "us", "gb_per_s", "share", "error")
    print("  ".join(f"{name:>12}" for name in columns))
    for row in results:
        print("  ".join(f"{row[name]!s:>12.12}" for name in columns))
    device = torch.cuda.get_device_name()
    record = {"bench": "scale_layout", "device": device, "torch": torch.__version__}
    print(json.dumps({**record, "triton": triton.__version__, "results": results}))


if __name__ == "__main__":
    main()
