"""Where the patches of a call stand: coordinates, rotary tables, and the column order.

A call holds the patches of its items end to end, each item a grid (t, h, w) in patches. Inside a
frame of h x w, merge units follow each other in raster order, and the patches of a unit too: that
is row order (vision.md 2.1). Column order moves whole units, inside each frame, so that they follow
each other down the columns (2.4). Nothing here waits for the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = [
    "Grid",
    "column_order",
    "frame_lengths",
    "inverse_order",
    "patch_coordinates",
    "reorder_units",
    "rotary_tables",
]

Grid = tuple[int, int, int]
"""(t, h, w): frames, and patches down and across; h and w are multiples of the merge size."""


def frame_lengths(grids: Sequence[Grid]) -> list[int]:
    """Patches of every frame of every item: the segments of attention."""
    return [h * w for t, h, w in grids for _ in range(t)]


def patch_coordinates(grid: Grid, merge_size: int, device: torch.device | str) -> torch.Tensor:
    """[h * w, 2] int64: (y, x) of each patch of one frame, in row order."""
    _, h, w = grid
    y, x = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij"
    )
    raster = torch.stack((y, x), dim=-1)
    units = raster.unflatten(0, (-1, merge_size)).unflatten(2, (-1, merge_size))
    return units.permute(0, 2, 1, 3, 4).flatten(0, 3)


def rotary_tables(
    grids: Sequence[Grid],
    *,
    merge_size: int,
    head_dim: int,
    theta: float,
    device: torch.device | str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(cos, sin), each [N, head_dim / 2] fp32, in row order, as kernels/rope.py applies them.

    The first half of the angles turns with y, the second with x, both with the frequencies
    theta^(-4 k / head_dim). Every frame starts again at (0, 0); time does not turn (vision.md 2.3).
    """
    exponent = torch.arange(0, head_dim, 4, dtype=torch.float32, device=device) / head_dim
    frequencies = theta**-exponent
    angles = []
    for grid in grids:
        coordinates = patch_coordinates(grid, merge_size, device).float()
        frame = (coordinates[:, :, None] * frequencies).flatten(1)
        angles.append(frame.repeat(grid[0], 1))
    table = torch.cat(angles)
    return table.cos(), table.sin()


def column_order(
    grids: Sequence[Grid], merge_size: int, device: torch.device | str
) -> torch.Tensor:
    """[units] int64: `units[column_order]` stand column by column in each frame."""
    orders = []
    start = 0
    for t, h, w in grids:
        rows, columns = h // merge_size, w // merge_size
        stop = start + t * rows * columns
        raster = torch.arange(start, stop, device=device).view(t, rows, columns)
        orders.append(raster.transpose(1, 2).flatten())
        start = stop
    return torch.cat(orders)


def inverse_order(order: torch.Tensor) -> torch.Tensor:
    """The permutation that undoes `order` [n]."""
    inverse = torch.empty_like(order)
    inverse[order] = torch.arange(len(order), device=order.device)
    return inverse


def reorder_units(x: torch.Tensor, order: torch.Tensor, merge_unit: int) -> torch.Tensor:
    """x [units * merge_unit, ...] with its units taken in `order` [units]; patches keep theirs."""
    return x.unflatten(0, (-1, merge_unit))[order].flatten(0, 1)
