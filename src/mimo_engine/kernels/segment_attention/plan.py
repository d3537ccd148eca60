"""Lengths of segments, and beside them on the device which queries each program takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import torch

__all__ = ["TILE_ROWS", "SegmentPlan", "packed_heads"]

TILE_ROWS = 128
"""Rows of a tile's matrix products: what two warp groups multiply at a time."""
_MAX_PACKED_HEADS = 16


def packed_heads(num_heads: int, num_kv_heads: int) -> int:
    """Places for query heads of one KV head in a tile, a power of two; some may stay empty.

    Together they read each key once, and a tile that packs heads is short along the segment: of
    the keys that it meets, fewer are outside the window of a given query.
    """
    places = 1
    while places < min(num_heads // num_kv_heads, _MAX_PACKED_HEADS):
        places *= 2
    return places


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SegmentPlan(Sequence[int]):
    """Rows of each segment, as any sequence of integers holds them, and their tiles of queries.

    A tile belongs to one segment, so what else is in a call cannot change a bit of its result.
    """

    lengths: tuple[int, ...]
    packed_heads: int
    """Of a tile's rows; it has TILE_ROWS / packed_heads queries."""
    tiles: torch.Tensor
    """[T, 3] int32: the segment's first row, its rows, and the tile's first query within them.
    Queries far from their segment's start come first: in a causal call they take the longest."""

    @classmethod
    def of(
        cls,
        lengths: Sequence[int],
        *,
        num_heads: int,
        num_kv_heads: int,
        device: torch.device | str,
    ) -> SegmentPlan:
        """For attention with so many heads. Sent to the device at once; no call waits for it."""
        heads = packed_heads(num_heads, num_kv_heads)
        num_queries = TILE_ROWS // heads
        rows = torch.tensor(tuple(lengths), dtype=torch.int64, device="cpu")
        num_tiles = (rows + num_queries - 1) // num_queries
        segment = torch.repeat_interleave(num_tiles)
        before = num_tiles.cumsum(0) - num_tiles
        index = torch.arange(len(segment), device="cpu") - before[segment]
        start = rows.cumsum(0) - rows
        tiles = torch.stack((start[segment], rows[segment], index * num_queries), dim=1)
        order = torch.argsort(index, descending=True, stable=True)
        return cls(
            lengths=tuple(lengths),
            packed_heads=heads,
            tiles=tiles[order].to(torch.int32).to(device, non_blocking=True),
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(self.lengths)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[int]: ...
    def __getitem__(self, index: int | slice) -> int | Sequence[int]:
        return self.lengths[index]
