"""Kernels are compiled before the first request, by passes over rows of nobody.

Captured steps compile what they hold. What is left is chunks of prompts: these sizes take every
kernel through each of its shapes. What was compiled is kept on disk, so a second start compiles
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mimo_engine.kernels.attention import PagedRows
from mimo_engine.model.batch import ForwardBatch, LayerCache
from mimo_engine.model.text import TextModel
from mimo_engine.worker.inputs import StepInputs

__all__ = ["warm_up"]

_SIZES = (2, 3, 5, 20, 40, 100, 300, 1000)


@torch.inference_mode()
def warm_up(model: TextModel, inputs: StepInputs, caches: Sequence[LayerCache]) -> None:
    """Nothing is written: the rows are at negative positions and have no slots."""
    device = model.norm.weight.device
    for size in _SIZES:
        positions = torch.arange(-size, 0, device=device)
        nowhere = torch.full((size,), -1, device=device)
        first_row = torch.tensor([0, size], dtype=torch.int32, device=device)
        low = torch.zeros(1, dtype=torch.int32, device=device)
        rows = {
            kind: PagedRows(
                first_row=first_row,
                first_position=low - size,
                visible_from=low,
                page_table=table[:1],
                page_size=inputs.page_size,
                max_rows=size,
                max_len=size,
            )
            for kind, table in inputs.device_tables.items()
        }
        batch = ForwardBatch(
            token_ids=torch.zeros_like(positions),
            positions=positions,
            groups=rows,
            write_slots=dict.fromkeys(rows, nowhere),
            caches=caches,
        )
        model.logits(model(batch)[-1:])
