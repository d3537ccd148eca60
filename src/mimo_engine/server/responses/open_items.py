"""Items of an answer while they are written: what each sends when it begins, grows and ends."""

from __future__ import annotations

from uuid import uuid4

from mimo_engine.server.responses.objects import (
    SEALED,
    ArgumentsDelta,
    ArgumentsDone,
    CallItem,
    Event,
    ItemAdded,
    ItemDone,
    MessageItem,
    OutputItem,
    OutputText,
    PartAdded,
    PartDone,
    ReasoningDelta,
    ReasoningDone,
    ReasoningItem,
    ReasoningText,
    Status,
    TextDelta,
    TextDone,
)
from mimo_engine.server.sealed_thoughts import sealed

__all__ = ["OpenCall", "OpenItem", "OpenMessage", "OpenThought", "new_id"]


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid4().hex}"


class OpenThought:
    def __init__(self, index: int, *, seals: bool) -> None:
        """`seals`: the item has encrypted_content when it has ended."""
        self.index = index
        self._id = new_id("rs")
        self._seals = seals
        self._pieces: list[str] = []

    def begin(self) -> list[Event]:
        item = ReasoningItem(id=self._id, status="in_progress")
        part = ReasoningText(text="")
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self._id, output_index=self.index, part=part),
        ]

    def add(self, text: str) -> list[Event]:
        self._pieces.append(text)
        return [ReasoningDelta(item_id=self._id, output_index=self.index, delta=text)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        text = "".join(self._pieces)
        part = ReasoningText(text=text)
        item = ReasoningItem(
            id=self._id,
            status=status,
            content=[part],
            encrypted_content=sealed(text, SEALED) if self._seals else None,
        )
        return item, [
            ReasoningDone(item_id=self._id, output_index=self.index, text=text),
            PartDone(item_id=self._id, output_index=self.index, part=part),
            ItemDone(output_index=self.index, item=item),
        ]


class OpenMessage:
    def __init__(self, index: int) -> None:
        self.index = index
        self._id = new_id("msg")
        self._pieces: list[str] = []

    def begin(self) -> list[Event]:
        item = MessageItem(id=self._id, status="in_progress")
        part = OutputText(text="")
        return [
            ItemAdded(output_index=self.index, item=item),
            PartAdded(item_id=self._id, output_index=self.index, part=part),
        ]

    def add(self, text: str) -> list[Event]:
        self._pieces.append(text)
        return [TextDelta(item_id=self._id, output_index=self.index, delta=text)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        text = "".join(self._pieces)
        part = OutputText(text=text)
        item = MessageItem(id=self._id, status=status, content=[part])
        return item, [
            TextDone(item_id=self._id, output_index=self.index, text=text),
            PartDone(item_id=self._id, output_index=self.index, part=part),
            ItemDone(output_index=self.index, item=item),
        ]


class OpenCall:
    def __init__(self, index: int, *, call_id: str, name: str) -> None:
        self.index = index
        self._id = new_id("fc")
        self._call_id = call_id
        self._name = name
        self._pieces: list[str] = []

    def begin(self) -> list[Event]:
        return [ItemAdded(output_index=self.index, item=self._item("in_progress"))]

    def add(self, arguments: str) -> list[Event]:
        self._pieces.append(arguments)
        return [ArgumentsDelta(item_id=self._id, output_index=self.index, delta=arguments)]

    def end(self, status: Status) -> tuple[OutputItem, list[Event]]:
        item = self._item(status)
        done = ArgumentsDone(
            item_id=self._id, output_index=self.index, name=item.name, arguments=item.arguments
        )
        return item, [done, ItemDone(output_index=self.index, item=item)]

    def _item(self, status: Status) -> CallItem:
        return CallItem(
            id=self._id,
            status=status,
            call_id=self._call_id,
            name=self._name,
            arguments="".join(self._pieces),
        )


OpenItem = OpenThought | OpenMessage | OpenCall
