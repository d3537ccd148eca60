"""Two kernels, by rows a sequence: few stream the keys once, many reuse them from registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import triton

from mimo_engine.kernels.attention.few import MAX_SPLITS, MIN_KEYS, few_rows
from mimo_engine.kernels.attention.many import many_rows
from mimo_engine.kernels.attention.rows import PagedRows
from mimo_engine.kernels.attention.tiles import Shape

__all__ = ["paged_attention"]

_MAX_PLACES = 128
"""Rows times heads of a tile, at most."""
_MIN_PLACES = 16
"""The least that matrix instructions take."""
_MAX_FEW_ROWS = 8
_MAX_FEW_BESIDE_MANY = 4
"""In a batch with long chunks, sequences of more rows than are ever decoded go with the chunks: a
smaller tile is quicker for the others."""
_SHORT_WINDOW = 256
_WANTED_PROGRAMS = 512
"""About four for each multiprocessor."""
_MAX_ALONE = 128
"""Up to so many programs have a multiprocessor each."""
_MAX_TICKETS = 1 << 16


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tiling:
    """How a kernel is laid out; `tile` counts keys."""

    places: int
    tile: int
    num_warps: int
    num_stages: int


def _few_tiling(shape: Shape, num_rows: int, num_programs: int, is_wide: bool) -> _Tiling:
    """Two programs share a multiprocessor, so that one computes while the other waits. Where each
    has its own, one more tile is on its way."""
    places = max(_MIN_PLACES, num_rows * shape.group)
    stages = 4 if num_programs <= _MAX_ALONE else 3
    if is_wide or (places == 64 and not shape.window):
        return _Tiling(places=places, tile=32, num_warps=4 if places < 128 else 8, num_stages=4)
    if places >= 64:
        return _Tiling(places=places, tile=64, num_warps=places // 16, num_stages=3)
    return _Tiling(places=places, tile=64, num_warps=4, num_stages=stages)


def _many_tiling(shape: Shape, is_wide: bool) -> _Tiling:
    """128 places reuse the keys most. In a short window the rows themselves are most of what is
    read: several small programs a multiprocessor keep more of them on their way."""
    if 0 < shape.window <= _SHORT_WINDOW:
        places = max(64, shape.group)
        return _Tiling(places=places, tile=32, num_warps=places // 16, num_stages=3)
    if is_wide:
        return _Tiling(places=max(64, shape.group), tile=32, num_warps=8, num_stages=3)
    return _Tiling(places=_MAX_PLACES, tile=64, num_warps=8, num_stages=3)


def paged_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    rows: PagedRows,
    *,
    num_visible_tokens: int | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """See the package. Calls on one device follow one another: they share its tickets."""
    assert q.dtype is k_pool.dtype is v_pool.dtype
    # Triton 3.6 makes a wild read of float32 prompts on a GPU; the interpreter has them right.
    assert q.dtype is torch.bfloat16 or not q.is_cuda, "on a GPU bfloat16 alone is served"
    assert all(tensor.is_contiguous() for tensor in (q, k_pool, v_pool))
    _check(rows)
    shape = Shape.of(
        q,
        k_pool,
        v_pool,
        page_size=rows.page_size,
        window=num_visible_tokens,
        has_sink=sink is not None,
    )
    assert shape.group <= _MAX_PLACES, f"{shape.heads} query heads on a KV head"
    out = torch.empty(*q.shape[:2], shape.dv, dtype=q.dtype, device=q.device)
    tensors = (q, k_pool, v_pool, q if sink is None else sink, out)
    most = _MAX_PLACES // shape.group
    if rows.max_rows <= min(_MAX_FEW_ROWS, most):
        _few(tensors, rows, shape, triton.next_power_of_2(max(1, rows.max_rows)))
        return out
    beside = min(_MAX_FEW_BESIDE_MANY, most) if rows.num_sequences > 1 else 0
    if beside:
        _few(tensors, rows, shape, beside)
    _many(tensors, rows, shape, min_rows=beside + 1)
    return out


def _check(rows: PagedRows) -> None:
    bounds = (rows.first_position, rows.last_position, rows.visible_from)
    tables = (rows.first_row, *bounds, rows.page_table)
    assert all(table.dtype is torch.int32 for table in tables)
    assert all(table.stride(-1) == 1 for table in tables)
    assert [len(table) - rows.num_sequences for table in tables] == [1, 0, 0, 0, 0]


def _few(tensors: tuple[torch.Tensor, ...], rows: PagedRows, shape: Shape, num_rows: int) -> None:
    """Of sequences of up to `num_rows` rows, a power of two."""
    out = tensors[-1]
    num_groups = rows.num_sequences * shape.num_kv_heads
    num_keys = rows.max_len
    if shape.window:
        num_keys = min(num_keys, shape.window + num_rows - 1)
    num_splits = _num_splits(num_groups, num_keys // MIN_KEYS)
    tiling = _few_tiling(shape, num_rows, num_groups * num_splits, out.dtype is torch.float32)
    parts, stats, tickets = out, out, out
    if num_splits > 1:
        sizes = (num_groups, num_splits, tiling.places)
        parts = torch.empty(*sizes, shape.dv, dtype=torch.float32, device=out.device)
        stats = torch.empty(*sizes, 2, dtype=torch.float32, device=out.device)
        tickets = _tickets(out.device)
        assert num_groups <= len(tickets)
    few_rows[(shape.num_kv_heads, num_splits, rows.num_sequences)](
        *tensors,
        parts,
        stats,
        tickets,
        rows.first_row,
        rows.first_position,
        rows.last_position,
        rows.visible_from,
        rows.page_table,
        rows.page_table.stride(0),
        num_splits,
        SHAPE=shape,
        ROWS=num_rows,
        BLOCK=tiling.places,
        TILE=tiling.tile,
        IS_SPLIT=num_splits > 1,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )


def _num_splits(num_groups: int, most: int) -> int:
    """A power of two, the fewest that give programs enough, while there are keys enough."""
    splits = 1
    while splits * num_groups < _WANTED_PROGRAMS and 2 * splits <= min(MAX_SPLITS, most):
        splits *= 2
    return splits


@cache
def _tickets(device: torch.device) -> torch.Tensor:
    """How many splits of a tile have arrived: 0 between calls. Made in a first call, outside of any
    graph, whose own memory would not keep the zeros."""
    assert device.type != "cuda" or not torch.cuda.is_current_stream_capturing()
    return torch.zeros(_MAX_TICKETS, dtype=torch.int32, device=device)


def _many(
    tensors: tuple[torch.Tensor, ...], rows: PagedRows, shape: Shape, *, min_rows: int
) -> None:
    """Of sequences of at least `min_rows` rows."""
    out = tensors[-1]
    tiling = _many_tiling(shape, out.dtype is torch.float32)
    num_rows = tiling.places // shape.group
    num_tiles = out.shape[0] // num_rows + rows.num_sequences
    many_rows[(num_tiles * shape.num_kv_heads,)](
        *tensors,
        rows.first_row,
        rows.first_position,
        rows.last_position,
        rows.visible_from,
        rows.page_table,
        rows.page_table.stride(0),
        rows.num_sequences,
        SHAPE=shape,
        MIN_ROWS=min_rows,
        ROWS=num_rows,
        TILE=tiling.tile,
        num_warps=tiling.num_warps,
        num_stages=tiling.num_stages,
    )
