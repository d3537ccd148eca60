"""Where the rows of a batch find their keys: sequences and page tables."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["PagedRows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PagedRows:
    """S sequences of consecutive batch rows, at consecutive positions. Tensors are int32.

    Row i of sequence s has position first_position[s] + i, but none behind last_position[s], and
    sees positions from visible_from[s] (and from the start of its window) up to its own. A sequence
    may have no rows. Rows at negative positions see nothing, and neither do rows before
    visible_from: padding is a sequence whose rows are all at negative positions.
    """

    first_row: torch.Tensor
    """[S + 1] rows of sequence s are batch rows first_row[s] ... first_row[s + 1] - 1."""
    first_position: torch.Tensor
    """[S] position of the first of them."""
    last_position: torch.Tensor
    """[S] position of the last row that counts. Those behind it, drafts that nobody made, see what
    it sees: nothing was written for them, so what is in their slots may be no number."""
    visible_from: torch.Tensor
    """[S] no row sees an earlier position."""
    page_table: torch.Tensor
    """[S, P] page of each page_size positions; read only where some row sees a position."""
    page_size: int
    """A power of two. The key of a position is in slot page * page_size + position % page_size."""
    max_rows: int
    """No sequence has more rows."""
    max_len: int
    """No row sees more keys, however wide its window; in a captured graph, ever. It decides how
    finely keys are split, never what is seen."""

    @property
    def num_sequences(self) -> int:
        return self.page_table.shape[0]
