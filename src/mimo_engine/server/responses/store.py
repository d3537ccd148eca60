"""Responses that can be asked for and continued by their ids: in memory, bounded, least recently
used out first.

A response keeps what its request added to the conversation and what came of it; the rest is that
of the response it continues. So a conversation is held once, however many of its responses are
kept, and for as long as one of them is: its earlier turns may be gone by their ids, and are still
part of it. What must hold: `num_bytes` is what is held in all, and never more than the bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mimo_engine.server.responses.conversation import Item

__all__ = ["KeptResponse", "ResponseStore"]

_OVERHEAD_BYTES = 1024
"""Of a response beside its JSON: objects and entries in tables, rounded up."""


@dataclass(slots=True, eq=False)
class KeptResponse:
    """A response that has ended. Its items and what it sent are JSON, since that has a size."""

    id: str
    parent: KeptResponse | None
    """The response that it continues."""
    input: bytes
    """A list: the items that its request added."""
    response: bytes
    """As it was sent."""
    output_ids: Sequence[str]
    num_holders: int = field(default=0, init=False)
    """The store's table, and kept responses that continue this one."""
    num_bytes: int = field(init=False)
    """Of this one alone."""
    num_bytes_in_all: int = field(init=False)
    """With all that it continues."""

    def __post_init__(self) -> None:
        self.num_bytes = len(self.input) + len(self.response) + _OVERHEAD_BYTES
        before = self.parent.num_bytes_in_all if self.parent is not None else 0
        self.num_bytes_in_all = before + self.num_bytes

    def input_items(self) -> list[Item]:
        return msgspec.json.decode(self.input)

    def output_items(self) -> list[Item]:
        response: dict[str, Any] = msgspec.json.decode(self.response)
        return response["output"]

    def line(self) -> list[KeptResponse]:
        """The responses of the conversation up to this one, oldest first."""
        found: list[KeptResponse] = []
        one: KeptResponse | None = self
        while one is not None:
            found.append(one)
            one = one.parent
        return found[::-1]


class ResponseStore:
    """At most `max_responses` by id, and at most `max_bytes` of JSON in all. Either 0: none."""

    def __init__(self, max_responses: int, max_bytes: int) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._by_id: OrderedDict[str, KeptResponse] = OrderedDict()
        self._by_output_id: dict[str, KeptResponse] = {}
        self.num_bytes = 0

    @property
    def is_on(self) -> bool:
        return self._max_responses > 0 and self._max_bytes > 0

    def add(self, kept: KeptResponse) -> bool:
        """False, and nothing changes: its conversation alone is larger than the store."""
        if not self.is_on or kept.num_bytes_in_all > self._max_bytes:
            return False
        self._by_id[kept.id] = kept
        self._hold(kept)
        while len(self._by_id) > self._max_responses or self.num_bytes > self._max_bytes:
            self._release(self._by_id.popitem(last=False)[1])
        return True

    def find(self, response_id: str) -> KeptResponse | None:
        kept = self._by_id.get(response_id)
        if kept is not None:
            self._by_id.move_to_end(response_id)
        return kept

    def find_item(self, item_id: str) -> Item | None:
        """An item that the server gave that id."""
        kept = self._by_output_id.get(item_id)
        if kept is None:
            return None
        return next(item for item in kept.output_items() if item["id"] == item_id)

    def remove(self, kept: KeptResponse) -> None:
        """It is not found any more. Responses that continue it keep its items."""
        self._release(self._by_id.pop(kept.id))

    def _hold(self, kept: KeptResponse | None) -> None:
        """Count one more holder; what nobody held (the last one went while it was being continued)
        is counted anew."""
        while kept is not None:
            kept.num_holders += 1
            if kept.num_holders > 1:
                return
            self.num_bytes += kept.num_bytes
            self._by_output_id.update(dict.fromkeys(kept.output_ids, kept))
            kept = kept.parent

    def _release(self, kept: KeptResponse | None) -> None:
        while kept is not None:
            kept.num_holders -= 1
            if kept.num_holders:
                return
            self.num_bytes -= kept.num_bytes
            for item_id in kept.output_ids:
                del self._by_output_id[item_id]
            kept = kept.parent
