"""The constraints of the running requests, and their masks for one step.

A request's constraint lives from its admission to the slot's next one. Everything slow is done on
threads of its own: a grammar is compiled while the prompt is computed, and the step's masks while
the forward pass runs (the grammar library lets go of Python's lock). A mask is waited for just
before sampling, it takes microseconds to a few milliseconds. A grammar may take a second: a slot
whose grammar is not compiled by then gets no token in this step, and nobody waits for it.

A constraint is brought up to date from the slot's tokens when its mask is made. So a request that
was preempted, and comes back with what it had sampled, needs nothing of its own.

Drafts have a mask each for the token behind them: a copy of the constraint is walked over them, as
far as it allows them; the drafts behind that are not verified. What the copy runs into, such as a
grammar's limits, so happens to a request only when the tokens have come.
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

Masks = Sequence[bytes | RequestError | None]
"""Which tokens may come (None: all) after the last known one, and after each draft that is
verified. The last one may be why none can."""


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
        first = self._masks(slot, 0)[0]
        return str(first) if isinstance(first, RequestError) else None

    def num_drafts(self, slot: int, num_drafts: int) -> int:
        """How many of `num_drafts` drafts are to be verified."""
        return len(self._masks(slot, num_drafts)) - 1

    def num_tokens(self, slot: int, num_drafts: int) -> int:
        """How many tokens count at most, of those that come of `num_drafts` verified drafts."""
        masks = self._masks(slot, num_drafts)
        return len(masks) - isinstance(masks[-1], RequestError)

    def tensor(self, slots: Mapping[int, int], device: torch.device) -> torch.Tensor | None:
        """Words [R, W] (int32) for the sampler: 1 + `num_drafts` rows of each slot, in order;
        slots: {slot: its num_drafts}. None when all tokens may come everywhere. A slot that is
        late, and a row where none can, is free too: its tokens do not count."""
        masks = [mask for slot, count in slots.items() for mask in self._masks(slot, count)]
        rows = [mask if isinstance(mask, bytes) else None for mask in masks]
        if not any(rows):
            return None
        free = b"\xff" * (-(-self._num_tokens // 32) * 4)
        data = bytearray().join(free if mask is None else mask for mask in rows)
        words = torch.frombuffer(data, dtype=torch.int32).view(len(rows), -1)
        return words.to(device, non_blocking=True)

    def _masks(self, slot: int, num_drafts: int) -> Masks:
        return self._pending[slot].result() if slot in self._pending else [None] * (1 + num_drafts)


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
                return [RequestError("the grammar refuses a token that it allowed")]
        mask = constraint.mask()
        return _draft_masks(constraint.copy(), mask, drafts) if drafts else [mask]
    except RequestError as error:
        return [error]


def _draft_masks(
    constraint: TokenConstraint, mask: bytes | None, drafts: Sequence[int]
) -> list[bytes | RequestError | None]:
    """`mask`, the constraint's own, and one behind each draft as far as it is walked.

    A draft that may not come, or behind which nothing can, is verified too, as the last: to leave
    it out would change the distribution of what stands in its place (sampling/rejection.py).
    """
    masks: list[bytes | RequestError | None] = [mask]
    try:
        for draft in drafts:
            # Asked of the mask: what it leaves out may be beyond all limits.
            if mask is not None and not mask[draft // 8] >> draft % 8 & 1:
                # It is rejected: nothing is drawn behind it.
                return [*masks, None]
            if not constraint.accept(draft):
                raise RequestError("the grammar refuses a token that it allowed")
            mask = constraint.mask()
            masks.append(mask)
    except RequestError as error:
        # If the draft comes, the next step ends the request.
        masks.append(error)
    return masks
