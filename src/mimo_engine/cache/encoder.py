"""Which media are encoded, which requests need them, and which may be forgotten.

The towers' output is kept by content hash, in units (messages.py, `MediaItem`), in host memory of
the worker; this is its bookkeeping. An entry is

    waiting     named by a live request, nothing of it encoded yet
    begun       some units encoded
    whole       all of them

A live request refers to the entries of all its media from `add` to `release`. While any request
does, what was encoded stays, so nothing is encoded twice for it, not even after a preemption.
Without one, a whole entry stays for later requests until its room is needed (least recently used
first), any other is forgotten at once. Begun and whole entries count against the capacity.

Features (the towers' input) are needed until their entry is whole or forgotten; `take_forgotten`
says what the worker can let go of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from mimo_engine.errors import RequestError
from mimo_engine.messages import MediaItem

__all__ = ["EncodeTask", "EncoderCache"]


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeTask:
    """Units of one item to encode, from the features that came with it."""

    content_hash: bytes
    first_unit: int
    num_units: int


@dataclass(slots=True, eq=False)
class _Entry:
    num_rows: int
    unit_rows: int
    num_units: int
    num_done: int = 0
    """Units encoded; they are encoded in order."""
    refs: int = 0
    error: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.num_done == self.num_units


class EncoderCache:
    """Entries by content hash. `capacity_rows`: rows of begun and whole entries together."""

    def __init__(self, capacity_rows: int) -> None:
        self.capacity_rows = capacity_rows
        self._entries: dict[bytes, _Entry] = {}
        self._idle: OrderedDict[bytes, None] = OrderedDict()
        self._num_rows = 0
        self._forgotten: dict[bytes, _Entry] = {}
        self.num_encoded_rows = 0
        self.num_reused_rows = 0

    @property
    def num_rows(self) -> int:
        """Rows that begun and whole entries take."""
        return self._num_rows

    @property
    def has_news(self) -> bool:
        """Whether `take_forgotten` has something to say."""
        return bool(self._forgotten)

    def check(self, items: Sequence[MediaItem]) -> None:
        """RequestError when a request with `items` could never be encoded."""
        num_rows = sum({item.content_hash: item.num_rows for item in items}.values())
        if num_rows > self.capacity_rows:
            raise RequestError(
                f"the media of this request make {num_rows} tokens, and the encoder cache holds "
                f"{self.capacity_rows}: send fewer or smaller media, or start the server with a "
                "larger --encoder-cache-gib",
                param="messages",
            )

    def add(self, items: Sequence[MediaItem]) -> None:
        """A live request refers to `items`."""
        for item in items:
            entry = self._entries.get(item.content_hash)
            if entry is None:
                entry = self._recall(item) or _Entry(item.num_rows, item.unit_rows, item.num_units)
                self._entries[item.content_hash] = entry
            if entry.is_whole:
                self.num_reused_rows += item.num_rows
            entry.refs += 1
            self._idle.pop(item.content_hash, None)

    def release(self, items: Sequence[MediaItem]) -> None:
        """The request has ended."""
        for item in items:
            entry = self._entries[item.content_hash]
            entry.refs -= 1
            if entry.refs:
                continue
            if entry.is_whole and entry.error is None:
                self._idle[item.content_hash] = None
            else:
                self._forget(item.content_hash)
        # Media that had to exceed the capacity do so no longer than they must.
        self._evict(0)

    def is_whole(self, item: MediaItem) -> bool:
        return self._entries[item.content_hash].is_whole

    def error(self, item: MediaItem) -> str | None:
        """Why the item cannot be encoded."""
        return self._entries[item.content_hash].error

    def make_room(self, item: MediaItem, *, may_exceed: bool) -> bool:
        """Whether the item may be encoded now: it is begun already, or fits beside what must stay.

        may_exceed: begin it in any case, because nothing that is under way will make room.
        """
        entry = self._entries[item.content_hash]
        if entry.num_done:
            return True
        self._evict(entry.num_rows)
        return may_exceed or self._num_rows + entry.num_rows <= self.capacity_rows

    def next_task(self, item: MediaItem, budget_rows: int) -> EncodeTask:
        """The item's next units: as many as `budget_rows` holds, and at least one."""
        entry = self._entries[item.content_hash]
        assert not entry.is_whole
        num_units = max(1, budget_rows // entry.unit_rows)
        return EncodeTask(
            content_hash=item.content_hash,
            first_unit=entry.num_done,
            num_units=min(num_units, entry.num_units - entry.num_done),
        )

    def apply(self, tasks: Sequence[EncodeTask], errors: dict[bytes, str]) -> None:
        """The worker has done `tasks`, but for the items in `errors`."""
        for task in tasks:
            entry = self._entries.get(task.content_hash)
            if entry is None:
                # Its last request was aborted meanwhile; a new one may come before the next plan.
                entry = self._forgotten[task.content_hash]
            elif not entry.num_done:
                self._num_rows += entry.num_rows
            assert entry.num_done == task.first_unit
            entry.num_done += task.num_units
            entry.error = entry.error or errors.get(task.content_hash)
            self.num_encoded_rows += min(
                task.num_units * entry.unit_rows,
                entry.num_rows - task.first_unit * entry.unit_rows,
            )

    def take_forgotten(self) -> tuple[bytes, ...]:
        """Hashes of entries that have gone since the last call: the worker drops what it has."""
        forgotten = tuple(self._forgotten)
        self._forgotten.clear()
        return forgotten

    def check_invariants(self) -> None:
        """Recount; for tests."""
        begun = [entry for entry in self._entries.values() if entry.num_done]
        assert self._num_rows == sum(entry.num_rows for entry in begun)
        for content_hash, entry in self._entries.items():
            assert (entry.refs == 0) == (content_hash in self._idle)
            assert entry.refs or entry.is_whole
        assert not self._forgotten.keys() & self._entries.keys()

    def _evict(self, num_rows: int) -> None:
        """Forget idle entries, least recently used first, until `num_rows` more fit."""
        while self._idle and self._num_rows + num_rows > self.capacity_rows:
            content_hash, _ = self._idle.popitem(last=False)
            self._forget(content_hash)

    def _forget(self, content_hash: bytes) -> None:
        entry = self._entries.pop(content_hash)
        if entry.num_done:
            self._num_rows -= entry.num_rows
        self._forgotten[content_hash] = entry

    def _recall(self, item: MediaItem) -> _Entry | None:
        """The item's entry as it was forgotten, if the worker has not been told yet."""
        entry = self._forgotten.pop(item.content_hash, None)
        if entry is not None and entry.num_done:
            self._num_rows += entry.num_rows
        return entry
