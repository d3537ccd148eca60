"""The constraints of the running requests, and their masks for one step.

A request's constraint lives from its admission to the slot's next one. Everything slow is done on
threads of its own: a grammar is compiled while the prompt is computed, and the step's masks while
the forward pass runs (the grammar library lets go of Python's lock). A mask is waited for just
before sampling, it takes microseconds to a few milliseconds. A grammar may take a second: a slot
whose grammar is not compiled by then gets no token in this step, and nobody waits for it. So it is
with a mask that takes far longer than it should, which a client's grammar can bring about.

A constraint is brought up to date from the slot's tokens when its mask is made. So a request that
was preempted, and comes back with what it had sampled, needs nothing of its own.

Drafts have a mask each for the token behind them: a copy of the constraint is walked over them, as
far as it allows them; the drafts behind that are not verified. What the copy runs into, such as a
grammar's limits, so happens to a request only when the tokens have come.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from time import monotonic

import torch

from mimo_engine.errors import RequestError
from mimo_engine.grammar.constraint import TokenConstraint, make_constraint
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.scheduler.plan import Admission
from mimo_engine.worker.inputs import SlotState

__all__ = ["ConstraintTable", "SamplingSlot", "StepMasks"]

_MAX_THREADS = 8
_PATIENCE_S = 0.25
"""So long a step waits for the masks that it began: many times what the worst should take."""
_LONGEST_MASK_S = 10.0
"""A request whose mask takes longer is ended."""

Masks = Sequence[bytes | RequestError | None]
"""Which tokens may come (None: all) after the last known one, and after each draft that is
verified. The last one may be why none can."""


@dataclass(frozen=True, slots=True)
class SamplingSlot:
    """A slot that samples in a step."""

    state: SlotState
    num_drafts: int
    """Of the drafts it holds, to be verified."""


@dataclass(slots=True)
class _Making:
    """The masks of a slot until a step takes them, its tokens and drafts stay as they are."""

    future: Future[Masks]
    since: float
    """When it was last seen to wait for a thread."""
    is_late: bool = False
    """A step has waited for it in vain; the later ones do not."""


class StepMasks:
    """The masks of one step's sampling slots."""

    def __init__(
        self, masks: Mapping[int, Masks], late_slots: Collection[int], num_tokens: int
    ) -> None:
        self._by_slot = masks
        self._late_slots = late_slots
        self._num_tokens = num_tokens

    def is_late(self, slot: int) -> bool:
        """Whether the slot's grammar is still being compiled, or its mask in the making, so that it
        cannot have a token."""
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
        return self._by_slot.get(slot, [None] * (1 + num_drafts))


class ConstraintTable:
    """By slot. `compiler` None: this rank's choices do not count, so nothing is constrained."""

    def __init__(self, compiler: GrammarCompiler | None, *, num_tokens: int) -> None:
        self._compiler = compiler
        self._num_tokens = num_tokens
        self._slots: dict[int, Future[TokenConstraint | None]] = {}
        self._making: dict[int, _Making] = {}
        self._threads = _mask_threads()
        # Apart from the masks, which must not queue behind a slow grammar.
        self._compilers = ThreadPoolExecutor(1, thread_name_prefix="grammars")

    def apply(self, admissions: Sequence[Admission]) -> None:
        """Take over a plan's admissions."""
        for admission in admissions:
            self._slots.pop(admission.slot, None)
            self._making.pop(admission.slot, None)
            params = admission.params
            if self._compiler is not None and (params.grammar or params.thinking):
                self._slots[admission.slot] = self._compilers.submit(
                    make_constraint, params, self._compiler
                )

    def start(self, slots: Mapping[int, SamplingSlot]) -> None:
        """Begin the masks of `slots`, of those whose grammar is compiled. Their tokens and drafts
        must not change until a step has taken the masks."""
        for slot, own in slots.items():
            if slot in self._slots and self._slots[slot].done() and slot not in self._making:
                future = self._threads.submit(_masks, self._slots[slot], own)
                self._making[slot] = _Making(future, monotonic())

    def finish(self, slots: Mapping[int, SamplingSlot]) -> StepMasks:
        """After the forward pass: what is compiled by now is in time, the rest is late."""
        self.start(slots)
        making = {slot: self._making[slot] for slot in slots if slot in self._making}
        wait([one.future for one in making.values() if not one.is_late], timeout=_PATIENCE_S)
        late = {slot for slot in slots if slot in self._slots and slot not in making}
        masks: dict[int, Masks] = {}
        for slot, one in making.items():
            if not one.future.running():
                one.since = monotonic()
            if one.future.done() and not one.future.cancelled():
                # It may have been begun for more drafts than this step verifies.
                masks[slot] = one.future.result()[: 1 + slots[slot].num_drafts]
            elif monotonic() - one.since > _LONGEST_MASK_S:
                masks[slot] = [
                    RequestError("the grammar takes too long to follow; make it simpler")
                ]
                self._leave_threads()
            else:
                one.is_late = True
                late.add(slot)
        for slot in masks:
            self._making.pop(slot, None)
        return StepMasks(masks, late, self._num_tokens)

    def _leave_threads(self) -> None:
        """A thread cannot be stopped, and masks wait behind it: they begin again, on new ones."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads = _mask_threads()
        for slot in [slot for slot, one in self._making.items() if one.future.cancelled()]:
            del self._making[slot]


def _mask_threads() -> ThreadPoolExecutor:
    num_threads = min(_MAX_THREADS, os.cpu_count() or 1)
    return ThreadPoolExecutor(num_threads, thread_name_prefix="masks")


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
