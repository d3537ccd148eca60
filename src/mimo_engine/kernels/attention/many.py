"""Many rows a sequence: chunks of prompts, over whatever is cached before them.

A program has ROWS rows of a sequence for all query heads of one KV head. With eight rows of sixteen
heads, rather than 128 rows of one head, a tile of 128 is full from eight rows on, only the last
tile or two of keys need a mask, and in a window of 128 three tiles of keys are read, where 128 rows
of one head would read four or five and hide more than half of them.

Tiles of rows are counted through the batch: sequence s begins at tile first_row[s] // ROWS + s,
which leaves each sequence at least as many tiles as it needs. So the grid is as large as the batch
and not as its longest sequence times their number, and nothing has to be listed.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.attention.tiles import finish, first_maxima, first_seen, load_q, scan

__all__ = ["many_rows"]


@triton.jit
def _sequence_of(tile, first_row_ptr, num_sequences, ROWS: tl.constexpr):
    """The last sequence that begins at or before a tile of rows; -1: none does."""
    count = 0
    for start in range(0, num_sequences, 128):
        index = start + tl.arange(0, 128)
        first = tl.load(first_row_ptr + index, mask=index < num_sequences, other=0)
        begins = (index < num_sequences) & (first // ROWS + index <= tile)
        count += tl.sum(begins.to(tl.int32), axis=0)
    return count - 1


# Tables are parts of larger tensors, and their sizes change: no code of its own for any.
@triton.jit(
    do_not_specialize=["table_stride", "num_sequences"],
    do_not_specialize_on_alignment=[
        "first_row_ptr",
        "first_position_ptr",
        "last_position_ptr",
        "visible_from_ptr",
        "table_ptr",
    ],
)
def many_rows(
    q_ptr,
    k_ptr,
    v_ptr,
    sink_ptr,
    out_ptr,
    first_row_ptr,
    first_position_ptr,
    last_position_ptr,
    visible_from_ptr,
    table_ptr,
    table_stride,
    num_sequences,
    SHAPE: tl.constexpr,
    MIN_ROWS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sequences of fewer than MIN_ROWS rows are left to the other kernel."""
    BLOCK: tl.constexpr = ROWS * SHAPE.group
    DV: tl.constexpr = SHAPE.dv
    kv_head = tl.program_id(0) % SHAPE.num_kv_heads
    # Last tiles first: they have most keys, and the short ones fill the gaps at the end.
    tile = (tl.num_programs(0) - 1 - tl.program_id(0)) // SHAPE.num_kv_heads
    sequence = _sequence_of(tile, first_row_ptr, num_sequences, ROWS)
    if sequence < 0:
        return
    first_row = tl.load(first_row_ptr + sequence)
    num_rows = tl.load(first_row_ptr + sequence + 1) - first_row
    skipped = (tile - first_row // ROWS - sequence) * ROWS
    if (num_rows < MIN_ROWS) | (skipped >= num_rows):
        return
    first_row += skipped
    num_rows = tl.minimum(num_rows - skipped, ROWS)
    last = tl.load(last_position_ptr + sequence)
    position = tl.minimum(tl.load(first_position_ptr + sequence) + skipped, last)
    low = first_seen(tl.load(visible_from_ptr + sequence), position, SHAPE)
    end = tl.minimum(position + num_rows, last + 1)
    places = tl.arange(0, BLOCK)
    q0, q1 = load_q(q_ptr, first_row, num_rows, kv_head, places, SHAPE)
    maxima, sums = first_maxima(sink_ptr, 0, kv_head, places, SHAPE)
    total = tl.zeros((BLOCK, DV), tl.float32)
    k_own, v_own = k_ptr + kv_head * (SHAPE.dk0 + SHAPE.dk1), v_ptr + kv_head * DV
    table = table_ptr + tl.cast(sequence, tl.int64) * table_stride
    positions = tl.minimum(position + places // SHAPE.group, last)
    if SHAPE.window == 0:
        # Tiles that the first row sees whole, and so all do.
        whole_end = low + tl.maximum(position + 1 - low, 0) // TILE * TILE
        maxima, sums, total = scan(
            table, q0, q1, k_own, v_own, low, whole_end, end, positions, maxima, sums, total, TILE,
            False, SHAPE,
        )  # fmt: skip
        low = whole_end
    maxima, sums, total = scan(
        table, q0, q1, k_own, v_own, low, end, end, positions, maxima, sums, total, TILE, True,
        SHAPE,
    )  # fmt: skip
    finish(out_ptr, sums, total, first_row, num_rows, kv_head, places, SHAPE)
