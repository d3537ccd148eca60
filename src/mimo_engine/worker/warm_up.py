"""Kernels are compiled before the first request, by passes over rows of nobody.

Captured steps compile what they hold. What is left is chunks of prompts, the draft layers' passes
behind them, and steps that decode without being captured: these sizes take every kernel through
each of its shapes. What was compiled is kept on disk, so a second start compiles nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import torch

from mimo_engine.kernels.attention import PagedRows
from mimo_engine.model.batch import ForwardBatch, LayerCache
from mimo_engine.model.text import TextModel
from mimo_engine.worker.drafting import Drafter
from mimo_engine.worker.inputs import StepInputs

__all__ = ["WarmPass", "warm_passes", "warm_up"]

_CHUNKS = ((2,), (3,), (5,), (20,), (40,), (100,), (300,), (1500,), (1, 20))
"""Rows of the sequences of each pass: the last has a chunk beside decoding."""
_SPLIT_LEN = 1024
"""Enough keys for attention to split, and too few to split them as finely as it can."""


@dataclass(frozen=True, slots=True)
class WarmPass:
    """counts: rows of each sequence. max_len: as `PagedRows` has it."""

    counts: Sequence[int]
    max_len: int


def warm_passes(*, num_slots: int, max_depth: int, max_len: int) -> list[WarmPass]:
    """Chunks of prompts; and verifications of up to max_depth drafts, of one request and of all,
    with few keys and with as many as there may be."""
    passes = [WarmPass(counts, max(counts)) for counts in _CHUNKS]
    num_rows = 1
    while num_rows < 2 * (1 + max_depth):
        for num_sequences in sorted({1, num_slots}):
            for length in sorted({num_rows, min(_SPLIT_LEN, max_len), max_len}):
                passes.append(WarmPass((num_rows,) * num_sequences, length))
        num_rows *= 2
    return passes


@torch.inference_mode()
def warm_up(
    model: TextModel,
    inputs: StepInputs,
    caches: Sequence[LayerCache],
    drafter: Drafter | None,
    *,
    passes: Sequence[WarmPass],
) -> None:
    """Nothing is written: the rows are at negative positions and have no slots."""
    for one in passes:
        batch = _of_nobody(one, inputs, caches, model.norm.weight.device)
        hidden = model(batch)
        model.logits(hidden[-1:])
        if drafter is not None:
            own = replace(batch, caches=drafter.caches)
            last = torch.tensor([len(hidden) - 1], device=hidden.device)
            for layer in range(len(drafter.caches)):
                drafter.layer_logits(layer, own.token_ids, hidden, own, last)


def _of_nobody(
    one: WarmPass, inputs: StepInputs, caches: Sequence[LayerCache], device: torch.device
) -> ForwardBatch:
    counts = one.counts
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
            max_len=one.max_len,
        )
        for kind, table in inputs.device_tables.items()
    }
    return ForwardBatch(
        token_ids=torch.zeros_like(positions),
        positions=positions,
        groups=rows,
        write_slots=dict.fromkeys(rows, nowhere),
        caches=caches,
    )
