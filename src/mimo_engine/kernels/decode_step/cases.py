"""Cases of both ends of a decode step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial

import torch

from mimo_engine.kernels.decode_step import reference, triton
from mimo_engine.kernels.decode_step.state import RECENT, SlotTensors
from mimo_engine.kernels.op import Arguments, Case, Op

__all__ = ["OPS"]

_PAGE_SIZE = 4


def _state(num_slots: int, device: torch.device) -> SlotTensors:
    def draw(high: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        values = torch.randint(0, high, (num_slots + 1,), device=device)
        return values.to(dtype)

    position = draw(30)
    position[0] = -1
    return SlotTensors(
        last_token=draw(1000),
        position=position,
        output_index=draw(50),
        recent=torch.randint(0, 1000, (num_slots + 1, RECENT), device=device),
        drafts=torch.randint(0, 1000, (num_slots + 1, 3), device=device),
        draft_from=(position - draw(5)).clamp(min=0),
        visible_from=draw(3),
        seed=draw(2**40),
        temperature=torch.rand(num_slots + 1, device=device),
        top_k=draw(9, torch.int32),
        top_p=torch.rand(num_slots + 1, device=device),
        min_p=torch.rand(num_slots + 1, device=device),
    )


def _slots(num_slots: int, num_members: int, device: torch.device) -> torch.Tensor:
    slots = 1 + torch.randperm(num_slots, device=device)[:num_members]
    return torch.cat((slots, slots.new_zeros(num_members // 2)))


def _begin(num_members: int, num_tables: int, num_rows: int, device: torch.device) -> Arguments:
    tables = [torch.randperm(200, device=device).view(20, 10).int() for _ in range(num_tables)]
    slots = _slots(19, num_members, device)
    return {
        "state": _state(19, device),
        "slots": slots,
        "num_drafts": torch.randint(0, num_rows, slots.shape, device=device).int(),
        "tables": tables,
        "page_size": _PAGE_SIZE,
        "num_rows": num_rows,
    }


def _end(num_members: int, num_rows: int, device: torch.device) -> Arguments:
    slots = _slots(19, num_members, device)
    next_token = torch.randint(0, 1000, slots.shape, device=device)
    next_token[0] = -1
    return {
        "state": _state(19, device),
        "slots": slots,
        "num_accepted": torch.randint(0, num_rows, slots.shape, device=device).int(),
        "next_token": next_token,
        "num_rows": num_rows,
    }


def _begin_drafts(num_members: int, num_rows: int, device: torch.device) -> Arguments:
    return {
        "state": _state(19, device),
        "slots": _slots(19, num_members, device),
        "table": torch.randperm(200, device=device).view(20, 10).int(),
        "page_size": _PAGE_SIZE,
        "num_rows": num_rows,
        "ring_len": 7,
    }


def _draft_tokens(num_members: int, layer: int, device: torch.device) -> Arguments:
    slots = _slots(19, num_members, device)
    return {
        "state": _state(19, device),
        "slots": slots,
        "guesses": torch.randint(0, 1000, (len(slots), 3), device=device),
        "layer": layer,
        "num_rows": 6,
    }


def _end_drafts(num_members: int, num_guesses: int, device: torch.device) -> Arguments:
    slots = _slots(19, num_members, device)
    return {
        "state": _state(19, device),
        "slots": slots,
        "guesses": torch.randint(0, 1000, (len(slots), num_guesses), device=device),
        "num_kept": num_guesses - 1,
    }


def _drafted(end: object, state: SlotTensors, **named: object) -> Sequence[torch.Tensor]:
    own = replace(state, drafts=state.drafts.clone(), draft_from=state.draft_from.clone())
    end(own, **named)  # type: ignore[operator]
    return [own.drafts[1:], own.draft_from[1:]]


def _rows(rows: object) -> Sequence[torch.Tensor]:
    values = [getattr(rows, field.name) for field in fields(rows)]  # type: ignore[arg-type]
    return [
        tensor
        for value in values
        for tensor in (value if isinstance(value, Sequence) else (value,))
    ]


def _ended(
    end: object, state: SlotTensors, slots: torch.Tensor, **named: object
) -> Sequence[torch.Tensor]:
    names = ("last_token", "recent", "position", "output_index")
    own = replace(state, **{name: getattr(state, name).clone() for name in names})
    tokens = end(own, slots, **named)  # type: ignore[operator]
    return [tokens, *(getattr(own, name)[1:] for name in names)]


OPS = (
    Op(
        name="begin_step",
        reference=lambda **named: _rows(reference.begin_step(**named)),
        triton=lambda **named: _rows(triton.begin_step(**named)),
        cases=[
            Case(
                name=f"{members} slots, {tables} tables, {rows} rows", make=partial(_begin, *shape)
            )
            for shape in ((1, 1, 1), (7, 2, 1), (4, 2, 4), (9, 1, 3))
            for members, tables, rows in (shape,)
        ],
        tolerance=0.0,
    ),
    Op(
        name="end_step",
        reference=partial(_ended, reference.end_step),
        triton=partial(_ended, triton.end_step),
        cases=[
            Case(name=f"{members} slots, {rows} rows", make=partial(_end, members, rows))
            for members, rows in ((1, 1), (7, 1), (8, 4), (3, 3))
        ],
        tolerance=0.0,
    ),
    Op(
        name="begin_drafts",
        reference=lambda **named: _rows(reference.begin_drafts(**named)),
        triton=lambda **named: _rows(triton.begin_drafts(**named)),
        cases=[
            Case(name=f"{members} slots, {rows} rows", make=partial(_begin_drafts, members, rows))
            for members, rows in ((1, 2), (9, 6), (4, 5))
        ],
        tolerance=0.0,
    ),
    Op(
        name="draft_tokens",
        reference=lambda **named: (reference.draft_tokens(**named),),
        triton=lambda **named: (triton.draft_tokens(**named),),
        cases=[
            Case(name=f"layer {layer}", make=partial(_draft_tokens, 8, layer)) for layer in range(3)
        ],
        tolerance=0.0,
    ),
    Op(
        name="end_drafts",
        reference=partial(_drafted, reference.end_drafts),
        triton=partial(_drafted, triton.end_drafts),
        cases=[
            Case(name=f"{count} guesses", make=partial(_end_drafts, 8, count)) for count in (1, 3)
        ],
        tolerance=0.0,
    ),
)
