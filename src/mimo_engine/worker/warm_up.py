"""Kernels are compiled before the first request, by passes over rows of nobody.

Captured steps compile what they hold. What is left is chunks of prompts: these sizes take every
kernel through each of its shapes. What was compiled is kept on disk, so a second start compiles
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from mimo_engine.kernels.attention import PagedRows
from mimo_engine.model.batch import ForwardBatch, LayerCache
from mimo_engine.model.text import TextModel
from mimo_engine.worker.inputs import StepInputs

__all__ = ["warm_up"]

_COUNTS = ((2,), (3,), (5,), (20,), (40,), (100,), (300,), (1500,), (1, 20))
"""Rows of the sequences of each pass: the last has a chunk beside decoding."""


@torch.inference_mode()
def warm_up(model: TextModel, inputs: StepInputs, caches: Sequence[LayerCache]) -> None:
    """Nothing is written: the rows are at negative positions and have no slots."""
    device = model.norm.weight.device
    for counts in _COUNTS:
        firsts = list(accumulate(counts, initial=0))
        positions = torch.cat([torch.arange(-count, 0, device=device) for count in counts])
        nowhere = torch.full_like(positions, -1)
        low = torch.zeros(len(counts), dtype=torch.int32, device=device)
        rows = {
            kind: PagedRows(
                first_row=torch.tensor(firsts, dtype=torch.int32, device=device),
                first_position=-torch.tensor(counts, dtype=torch.int32, device=device),
                last_position=low - 1,
                visible_from=low,
                page_table=table[:1].expand(len(counts), -1),
                page_size=inputs.page_size,
                max_rows=max(counts),
                max_len=max(counts),
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
