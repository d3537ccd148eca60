"""The constraints of the running requests, and their masks for one step.

A request's constraint lives from its admission to the slot's next one. Everything slow is done on
threads of its own: a grammar is compiled while the prompt is computed, and the step's masks while
the forward pass runs (the grammar library lets go of Python's lock). A mask is waited for just
before sampling, it takes microseconds to a few milliseconds. A grammar may take a second: a slot
whose grammar is not compiled by then gets no token in this step, and nobody waits for it.

A constraint is brought up to date from the slot's tokens when its mask is made. So a request that
was preempted, and comes back with what it had sampled, needs nothing of its own.

Drafts have a mask each for the token behind them: the constraint is walked forward over them, and
back again. It goes as far as it allows them; the drafts behind that are not verified.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from mimo_engine.errors import RequestError
from mimo_engine.grammar.constraint import TokenConstraint, make_constraint
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.scheduler.plan import Admission
from mimo_engine.worker.inputs import SlotState

__all__ = ["ConstraintTable", "SamplingSlot", "StepMasks"]

_MAX_THREADS = 8

Masks = Sequence[bytes | None] | RequestError
"""Which tokens may come (None: all) after the last known one, and after each draft that may come;
or why none can."""


@dataclass(frozen=True, slots=True)
class SamplingSlot:
    """A slot that samples in a step."""

    state: SlotState
    num_drafts: int
    """Of the drafts it holds, to be verified."""


class StepMasks:
    """The masks of one step's sampling slots, perhaps still in the making: reading waits."""

    def __init__(
        self, pending: Mapping[int, Future[Masks]], late_slots: Collection[int], num_tokens: int
    ) -> None:
        self._pending = pending
        self._late_slots = late_slots
        self._num_tokens = num_tokens

    def is_late(self, slot: int) -> bool:
        """Whether the slot's grammar is still being compiled, so that it cannot have a token."""
        return slot in self._late_slots

    def error(self, slot: int) -> str | None:
        """Why no token may come in this slot."""
        masks = self._pending[slot].result() if slot in self._pending else None
        return str(masks) if isinstance(masks, RequestError) else None

    def num_drafts(self, slot: int, num_drafts: int) -> int:
        """How many of `num_drafts` drafts may come."""
        masks = self._pending[slot].result() if slot in self._pending else None
        return len(masks) - 1 if isinstance(masks, Sequence) else num_drafts

    def tensor(self, slots: Mapping[int, int], device: torch.device) -> torch.Tensor | None:
        """Words [R, W] (int32) for the sampler: 1 + `num_drafts` rows of each slot, in order;
        slots: {slot: its num_drafts}. None when all tokens may come everywhere. A slot that is late
        or has an error is free too: its tokens do not count."""
        rows: list[bytes | None] = []
        for slot, num_drafts in slots.items():
            masks = self._pending[slot].result() if slot in self._pending else None
            rows += masks if isinstance(masks, Sequence) else [None] * (1 + num_drafts)
        if not any(rows):
            return None
        free = b"\xff" * (-(-self._num_tokens // 32) * 4)
        data = bytearray().join(free if mask is None else mask for mask in rows)
        words = torch.frombuffer(data, dtype=torch.int32).view(len(rows), -1)
        return words.to(device, non_blocking=True)


class ConstraintTable:
    """By slot. `compiler` None: this rank's choices do not count, so nothing is constrained."""

    def __init__(self, compiler: GrammarCompiler | None, *, num_tokens: int) -> None:
        self._compiler = compiler
        self._num_tokens = num_tokens
        self._slots: dict[int, Future[TokenConstraint | None]] = {}
        num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="masks")
        # Apart from the masks, which must not queue behind a slow grammar.
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    def apply(self, admissions: Sequence[Admission]) -> None:
        """Take over a plan's admissions."""
        for admission in admissions:
            self._slots.pop(admission.slot, None)
            params = admission.params
            if self._compiler is not None and (params.grammar or params.thinking):
                self._slots[admission.slot] = self._compilers.submit(
                    make_constraint, params, self._compiler
                )

    def start(self, slots: Mapping[int, SamplingSlot]) -> dict[int, Future[Masks]]:
        """Begin the masks of `slots`, of those whose grammar is compiled. Their tokens and drafts
        must not change until the masks are taken."""
        return {
            slot: self._threads.submit(_masks, self._slots[slot], own)
            for slot, own in slots.items()
            if slot in self._slots and self._slots[slot].done()
        }

    def finish(
        self, slots: Mapping[int, SamplingSlot], started: Mapping[int, Future[Masks]]
    ) -> StepMasks:
        """After the forward pass: what is compiled by now is in time, the rest is late."""
        remaining = {slot: own for slot, own in slots.items() if slot not in started}
        pending = {**started, **self.start(remaining)}
        late = {slot for slot in remaining if slot in self._slots and slot not in pending}
        return StepMasks(pending, late, self._num_tokens)


def _masks(compiled: Future[TokenConstraint | None], own: SamplingSlot) -> Masks:
    state = own.state
    drafts = state.drafts[: own.num_drafts]
    try:
        constraint = compiled.result()
        if constraint is None:
            return [None] * (1 + len(drafts))
        first = state.num_prompt_tokens + constraint.num_accepted
        for token_id in state.token_ids[first:]:
            if not constraint.accept(token_id):
                return RequestError("the grammar went over its limits; make it simpler")
        return [constraint.mask(), *_draft_masks(constraint, drafts)]
    except RequestError as error:
        return error


def _draft_masks(constraint: TokenConstraint, drafts: Sequence[int]) -> list[bytes | None]:
    """A mask behind each draft, as far as the constraint goes; it is left as it was.

    The first draft that may not come is verified too: it is rejected, and to leave it out would
    change the distribution of what stands in its place (sampling/rejection.py).
    """
    masks: list[bytes | None] = []
    num_walked = 0
    for draft in drafts:
        if not constraint.accept(draft):
            masks.append(None)
            break
        num_walked += 1
        try:
            masks.append(constraint.mask())
        except RequestError:
            # Nothing may follow: if the draft's token comes, the next step says so.
            break
    constraint.rollback(num_walked)
    return masks
