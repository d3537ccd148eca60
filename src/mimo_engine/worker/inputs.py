"""From `StepPlan` to `ForwardBatch`: the worker's memory of the running requests.

Per slot it keeps the token ids, the sampling parameters and two page tables (full, sliding), as the
plans told them. Everything here is host data in numpy; one step ends in a handful of tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from mimo_engine.config.model import AttentionKind
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.kernels.attention import AttentionGroup, PagedRows
from mimo_engine.kernels.dispatch import AttentionRows
from mimo_engine.messages import MediaItem
from mimo_engine.model.batch import ForwardBatch, LayerCache, MediaRows
from mimo_engine.scheduler.plan import Admission, PageRun, StepPlan, StepRow

__all__ = ["MediaPiece", "Rows", "SlotState", "StepInputs"]

_LONGEST_SHARED = 16
"""Rows of sequences that are attended together where they have equally many: verified drafts."""


@dataclass(frozen=True, slots=True)
class MediaPiece:
    """Rows `first_row` ... of an encoded item, for consecutive rows of the batch."""

    content_hash: bytes
    first_row: int
    num_rows: int
    batch_row: int


@dataclass(slots=True)
class SlotState:
    """One running request as its worker knows it."""

    params: SamplingParams
    seed: int
    stop_ids: tuple[int, ...]
    num_prompt_tokens: int
    token_ids: list[int] = field(default_factory=list)
    """Prompt and sampled tokens, in order."""
    media: tuple[MediaItem, ...] = ()
    drafts: list[int] = field(default_factory=list)
    """Guesses of the tokens that follow."""
    draft_proposals: list[torch.Tensor] = field(default_factory=list)
    """[V] each, what the drafts were drawn from; empty: each is the likeliest of its layer."""
    depth_on_device: int | None = None
    """The device knows the last token and what comes with it, as a captured step of this depth left
    them, with all its drafts (graphs.py); None: it does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rows:
    """Consecutive rows of one request in a batch."""

    slot: int
    start: int
    """Position of the first."""
    count: int
    visible_from: int = 0
    """No row sees an earlier position."""


class StepInputs:
    """Owns the slots and their page tables; `max_pages` bounds the pages of one request."""

    def __init__(
        self,
        *,
        num_slots: int,
        max_pages: int,
        page_size: int,
        window: int | None,
        device: torch.device,
        reads_pages: bool = False,
    ) -> None:
        """reads_pages: what attention is told, page tables on the device or slots key by key."""
        self.page_size = page_size
        self._window = window
        self._device = device
        self._kinds = tuple(AttentionKind) if window is not None else (AttentionKind.FULL,)
        self._slots: list[SlotState | None] = [None] * num_slots
        self._tables = {
            kind: np.zeros((num_slots, max_pages), dtype=np.int32) for kind in AttentionKind
        }
        self.device_tables = {
            kind: torch.zeros(1 + num_slots, max_pages, dtype=torch.int32, device=device)
            for kind in (self._kinds if reads_pages else ())
        }
        """Page tables for attention that reads them: row 1 + slot; row 0 is nobody's."""

    def state(self, slot: int) -> SlotState:
        state = self._slots[slot]
        assert state is not None, f"slot {slot} is empty"
        return state

    def apply(self, plan: StepPlan) -> None:
        """Take over the plan's admissions and page runs."""
        for admission in plan.admissions:
            self._slots[admission.slot] = _new_state(admission)
        for kind in AttentionKind:
            self._enter(kind, [(row.slot, _run_of(row, kind)) for row in plan.rows])

    def _enter(self, kind: AttentionKind, runs: Sequence[tuple[int, PageRun]]) -> None:
        table = self._tables[kind]
        places: list[int] = []
        pages: list[int] = []
        for slot, run in runs:
            if run.pages:
                table[slot, run.first : run.first + len(run.pages)] = run.pages
                first = (1 + slot) * table.shape[1] + run.first
                places += range(first, first + len(run.pages))
                pages += run.pages
        if pages and kind in self.device_tables:
            entered = self._tensor(np.array([places, pages], dtype=np.int64))
            self.device_tables[kind].view(-1)[entered[0]] = entered[1].int()

    def media_pieces(self, plan: StepPlan) -> list[MediaPiece]:
        """What of the encoded media the batch of `plan.rows` reads, by batch row."""
        pieces = []
        batch_row = 0
        for row in plan.rows:
            end = row.start + row.num_tokens
            state = self.state(row.slot)
            # Media stand in prompts alone, so plain decoding looks at none.
            for item in state.media if row.start < state.num_prompt_tokens else ():
                for span in item.spans:
                    first = max(row.start, span.start)
                    count = min(end, span.start + span.num_tokens) - first
                    if count > 0:
                        pieces.append(
                            MediaPiece(
                                item.content_hash,
                                span.first_row + first - span.start,
                                count,
                                batch_row + first - row.start,
                            )
                        )
            batch_row += row.num_rows
        return sorted(pieces, key=lambda piece: piece.batch_row)

    def batch(
        self, plan: StepPlan, caches: Sequence[LayerCache], media: MediaRows | None = None
    ) -> ForwardBatch:
        """The forward pass that `plan.rows` ask for, rows in the plan's order."""
        tokens: list[int] = []
        for row in plan.rows:
            state = self.state(row.slot)
            known = state.token_ids
            end = row.start + row.num_tokens
            assert end <= len(known), "a row beyond the known tokens"
            assert row.num_drafts <= len(state.drafts), "drafts that were never made"
            tokens += known[row.start : end]
            tokens += state.drafts[: row.num_drafts]
        rows = [Rows(slot=row.slot, start=row.start, count=row.num_rows) for row in plan.rows]
        return self.batch_of(rows, tokens, caches=caches, media=media)

    def batch_of(
        self,
        rows: Sequence[Rows],
        tokens: Sequence[int],
        *,
        caches: Sequence[LayerCache],
        media: MediaRows | None = None,
        kinds: Sequence[AttentionKind] | None = None,
    ) -> ForwardBatch:
        """A pass over any rows whose pages are in the tables. tokens: of all rows, in order. kinds
        of attention that will be asked for; None: all of the model."""
        kinds = kinds or self._kinds
        counts = [row.count for row in rows]
        slot_of_row = np.repeat([row.slot for row in rows], counts)
        positions = np.concatenate([np.arange(r.start, r.start + r.count) for r in rows])
        return ForwardBatch(
            token_ids=self._tensor(np.asarray(tokens, dtype=np.int64)),
            positions=self._tensor(positions),
            groups={kind: self._attention_rows(kind, rows) for kind in kinds},
            write_slots={
                kind: self._tensor(self._pool_slots(kind, slot_of_row, positions)) for kind in kinds
            },
            caches=caches,
            media=media,
        )

    def _attention_rows(self, kind: AttentionKind, rows: Sequence[Rows]) -> AttentionRows:
        if kind not in self.device_tables:
            return self._groups(kind, rows)
        numbers = np.array(
            [(1 + row.slot, row.start, row.start + row.count - 1, row.visible_from) for row in rows]
        )
        slots, first_position, last_position, visible_from = self._tensor(
            numbers.T.astype(np.int32)
        )
        first_row = np.cumsum([0, *(row.count for row in rows)], dtype=np.int32)
        last = max(row.start + row.count for row in rows)
        num_pages = -(-last // self.page_size)
        return PagedRows(
            first_row=self._tensor(first_row),
            first_position=first_position,
            last_position=last_position,
            visible_from=visible_from,
            page_table=self.device_tables[kind][:, :num_pages].index_select(0, slots),
            page_size=self.page_size,
            max_rows=max(row.count for row in rows),
            max_len=last,
        )

    def _groups(self, kind: AttentionKind, rows: Sequence[Rows]) -> list[AttentionGroup]:
        """One group for all requests of equally many rows, one for every long chunk."""
        first_rows = np.cumsum([0, *(row.count for row in rows)])[:-1]
        members: dict[tuple[int, int], list[int]] = {}
        for i, row in enumerate(rows):
            alone = i if row.count > _LONGEST_SHARED else -1
            members.setdefault((row.count, alone), []).append(i)
        return [
            self._group(kind, [rows[i] for i in group], first_rows[group])
            for group in members.values()
        ]

    def _group(
        self, kind: AttentionKind, rows: Sequence[Rows], first_rows: np.ndarray
    ) -> AttentionGroup:
        first_position = np.array([row.start for row in rows], dtype=np.int64)
        num_tokens = rows[0].count
        last_position = first_position + num_tokens - 1
        kv_first = np.array([row.visible_from for row in rows], dtype=np.int64)
        if kind is AttentionKind.SLIDING:
            assert self._window is not None
            kv_first = np.maximum(first_position - self._window + 1, kv_first)
        length = int((last_position - kv_first).max()) + 1
        kv_position = kv_first[:, None] + np.arange(length)
        # Beyond a shorter sequence's end nothing is visible; its last key is as good as any.
        kv_position = np.minimum(kv_position, last_position[:, None])
        slots = np.array([row.slot for row in rows])[:, None]
        return AttentionGroup(
            rows=self._tensor(first_rows[:, None] + np.arange(num_tokens)),
            first_position=self._tensor(first_position),
            kv_slots=self._tensor(self._pool_slots(kind, slots, kv_position)),
            kv_first=self._tensor(kv_first),
        )

    def _pool_slots(
        self, kind: AttentionKind, slots: np.ndarray, positions: np.ndarray
    ) -> np.ndarray:
        """Pool slots of positions of the requests in `slots`, broadcast; int64."""
        pages = self._tables[kind][slots, positions // self.page_size].astype(np.int64)
        return pages * self.page_size + positions % self.page_size

    def _tensor(self, array: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


def _run_of(row: StepRow, kind: AttentionKind) -> PageRun:
    return row.full if kind is AttentionKind.FULL else row.sliding


def _new_state(admission: Admission) -> SlotState:
    return SlotState(
        params=admission.params,
        seed=admission.sample_seed,
        stop_ids=admission.stop_ids,
        num_prompt_tokens=admission.num_prompt_tokens,
        token_ids=list(admission.token_ids),
        media=admission.media,
    )
