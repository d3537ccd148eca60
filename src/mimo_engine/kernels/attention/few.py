"""A few rows a sequence: decoding, and verifying drafts. Memory decides, so every key is read once.

A program has all rows of a sequence, for one KV head and one run of its keys. Runs (splits) keep
the memory busy where sequences are few and long. How many there may be is decided by the host and
never changes in a captured graph; how many there are, and which keys each has, follows from the
length on the device. The last split to arrive merges what the others left: one launch in all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.attention.tiles import (
    LOWEST,
    finish,
    first_maxima,
    first_seen,
    load_q,
    scan,
)

__all__ = ["MAX_SPLITS", "MIN_KEYS", "few_rows"]

MIN_KEYS = 128
"""In a split: fewer would cost more to merge than to read."""
MAX_SPLITS = 32
_MIN_KEYS, _MAX_SPLITS = tl.constexpr(MIN_KEYS), tl.constexpr(MAX_SPLITS)


# Tables are parts of larger tensors, and sizes change: no code of its own for any.
@triton.jit(
    do_not_specialize=["table_stride", "num_splits"],
    do_not_specialize_on_alignment=[
        "first_row_ptr",
        "first_position_ptr",
        "last_position_ptr",
        "visible_from_ptr",
        "table_ptr",
    ],
)
def few_rows(
    q_ptr,
    k_ptr,
    v_ptr,
    sink_ptr,
    out_ptr,
    part_ptr,
    stat_ptr,
    ticket_ptr,
    first_row_ptr,
    first_position_ptr,
    last_position_ptr,
    visible_from_ptr,
    table_ptr,
    table_stride,
    num_splits,
    SHAPE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
    IS_SPLIT: tl.constexpr,
):
    """Sequences of more than ROWS rows are left to the other kernel. IS_SPLIT: there are parts
    [groups, num_splits, BLOCK, dv], stats [groups, num_splits, 2, BLOCK] and tickets [groups]."""
    DV: tl.constexpr = SHAPE.dv
    kv_head, split, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first_row = tl.load(first_row_ptr + sequence)
    num_rows = tl.load(first_row_ptr + sequence + 1) - first_row
    if (num_rows == 0) | (num_rows > ROWS):
        return
    position = tl.load(first_position_ptr + sequence)
    last = tl.load(last_position_ptr + sequence)
    low = first_seen(tl.load(visible_from_ptr + sequence), position, SHAPE)
    end = tl.maximum(tl.minimum(position + num_rows, last + 1), low)
    num_tiles = tl.cdiv(end - low, TILE)
    per_split = tl.maximum(tl.cdiv(num_tiles, num_splits), _MIN_KEYS // TILE)
    num_parts = tl.maximum(tl.cdiv(num_tiles, per_split), 1)
    if split >= num_parts:
        return
    low += split * per_split * TILE
    places = tl.arange(0, BLOCK)
    q0, q1 = load_q(q_ptr, first_row, num_rows, kv_head, places, SHAPE)
    maxima, sums = first_maxima(sink_ptr, split, kv_head, places, SHAPE)
    total = tl.zeros((BLOCK, DV), tl.float32)
    k_own, v_own = k_ptr + kv_head * (SHAPE.dk0 + SHAPE.dk1), v_ptr + kv_head * DV
    table = table_ptr + sequence.to(tl.int64) * table_stride
    positions = tl.minimum(position + places // SHAPE.group, last)
    stop = tl.minimum(low + per_split * TILE, end)
    maxima, sums, total = scan(
        table, q0, q1, k_own, v_own, low, stop, end, positions, maxima, sums, total, TILE, True,
        SHAPE,
    )  # fmt: skip
    if IS_SPLIT:
        group = sequence * SHAPE.num_kv_heads + kv_head
        parts = part_ptr + group.to(tl.int64) * num_splits * (BLOCK * DV)
        stats = stat_ptr + group.to(tl.int64) * num_splits * (BLOCK * 2)
        _leave(parts, stats, split, places, maxima, sums, total, BLOCK, DV)
        if tl.atomic_add(ticket_ptr + group, 1, sem="acq_rel", scope="gpu") != num_parts - 1:
            return
        tl.store(ticket_ptr + group, 0)
        sums, total = _merged(parts, stats, num_parts, places, BLOCK, DV)
    finish(out_ptr, sums, total, first_row, num_rows, kv_head, places, SHAPE)


@triton.jit
def _leave(
    part_ptr,
    stat_ptr,
    split,
    places,
    maxima,
    sums,
    total,
    BLOCK: tl.constexpr,
    DV: tl.constexpr,
):
    """What one split of a tile has found; parts [splits, BLOCK, DV], stats [splits, 2, BLOCK]."""
    own = part_ptr + (split * BLOCK + places)[:, None] * DV
    tl.store(own + tl.arange(0, DV)[None, :], total)
    tl.store(stat_ptr + split * (2 * BLOCK) + places, maxima)
    tl.store(stat_ptr + split * (2 * BLOCK) + BLOCK + places, sums)
    # All of the program's stores, before one of its threads takes a ticket.
    tl.debug_barrier()


@triton.jit
def _merged(
    part_ptr,
    stat_ptr,
    num_parts,
    places,
    BLOCK: tl.constexpr,
    DV: tl.constexpr,
):
    """(sums, total) of all parts of a tile. Several are read without waiting for one another; the
    first-level cache, which knows nothing of other programs' stores, is passed by."""
    AT_ONCE: tl.constexpr = 128 // BLOCK
    maxima = tl.full((BLOCK,), LOWEST, tl.float32)
    for i in tl.static_range(_MAX_SPLITS):
        stats = stat_ptr + tl.minimum(i, num_parts - 1) * (2 * BLOCK) + places
        maxima = tl.maximum(maxima, tl.load(stats, cache_modifier=".cg"))
    sums = tl.zeros((BLOCK,), tl.float32)
    total = tl.zeros((BLOCK, DV), tl.float32)
    for first in range(0, num_parts, AT_ONCE):
        for i in tl.static_range(AT_ONCE):
            # What is beyond the last part is read again and counts for nothing.
            part = tl.minimum(first + i, num_parts - 1)
            stats = stat_ptr + part * (2 * BLOCK) + places
            own = part_ptr + (part * BLOCK + places)[:, None] * DV
            share = tl.exp2(tl.load(stats, cache_modifier=".cg") - maxima)
            share = tl.where(first + i < num_parts, share, 0.0)
            sums += tl.load(stats + BLOCK, cache_modifier=".cg") * share
            values = tl.load(own + tl.arange(0, DV)[None, :], cache_modifier=".cg")
            total += values * share[:, None]
    return sums, total
