"""The constraints of the running requests, and their masks for one step.

A request's constraint lives from its admission to the slot's next one. Everything slow is done on
threads of its own: a grammar is compiled while the prompt is computed, and the step's masks while
the forward pass runs (the grammar library lets go of Python's lock). A mask is waited for just
before sampling, it takes microseconds to a few milliseconds. A grammar may take a second: a slot
whose grammar is not compiled by then gets no token in this step, and nobody waits for it.

A constraint is brought up to date from the slot's tokens when its mask is made. So a request that
was preempted, and comes back with what it had sampled, needs nothing of its own.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from mimo_engine.errors import RequestError
from mimo_engine.grammar.constraint import TokenConstraint, make_constraint
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.scheduler.plan import Admission
from mimo_engine.worker.inputs import SlotState

__all__ = ["ConstraintTable", "StepMasks"]

_MAX_THREADS = 8

Mask = bytes | RequestError | None
"""Which tokens may come, all of them, or why none can."""


class StepMasks:
    """The masks of one step's sampling slots, perhaps still in the making: reading waits."""

    def __init__(
        self, pending: Mapping[int, Future[Mask]], late_slots: Collection[int], num_tokens: int
    ) -> None:
        self._pending = pending
        self._late_slots = late_slots
        self._num_tokens = num_tokens

    def is_late(self, slot: int) -> bool:
        """Whether the slot's grammar is still being compiled, so that it cannot have a token."""
        return slot in self._late_slots

    def error(self, slot: int) -> str | None:
        """Why no token may come in this slot."""
        mask = self._pending[slot].result() if slot in self._pending else None
        return str(mask) if isinstance(mask, RequestError) else None

    def tensor(self, slots: Sequence[int], device: torch.device) -> torch.Tensor | None:
        """Words [R, W] (int32) for `sample`; None when all tokens may come in every slot. A slot
        that is late or has an error is free too: its token does not count."""
        masks = [self._pending[slot].result() if slot in self._pending else None for slot in slots]
        if not any(isinstance(mask, bytes) for mask in masks):
            return None
        free = b"\xff" * (-(-self._num_tokens // 32) * 4)
        data = bytearray().join(mask if isinstance(mask, bytes) else free for mask in masks)
        words = torch.frombuffer(data, dtype=torch.int32).view(len(slots), -1)
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

    def start(self, slots: Mapping[int, SlotState]) -> dict[int, Future[Mask]]:
        """Begin the masks of `slots`, of those whose grammar is compiled. Their tokens must not
        change until the masks are taken."""
        return {
            slot: self._threads.submit(_mask, self._slots[slot], state)
            for slot, state in slots.items()
            if slot in self._slots and self._slots[slot].done()
        }

    def finish(
        self, slots: Mapping[int, SlotState], started: Mapping[int, Future[Mask]]
    ) -> StepMasks:
        """After the forward pass: what is compiled by now is in time, the rest is late."""
        remaining = {slot: state for slot, state in slots.items() if slot not in started}
        pending = {**started, **self.start(remaining)}
        late = {slot for slot in remaining if slot in self._slots and slot not in pending}
        return StepMasks(pending, late, self._num_tokens)


def _mask(compiled: Future[TokenConstraint | None], state: SlotState) -> Mask:
    try:
        constraint = compiled.result()
        if constraint is None:
            return None
        first = state.num_prompt_tokens + constraint.num_accepted
        for token_id in state.token_ids[first:]:
            if not constraint.accept(token_id):
                return RequestError("the grammar went over its limits; make it simpler")
        return constraint.mask()
    except RequestError as error:
        return error
