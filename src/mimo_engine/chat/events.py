"""What the stream parser makes of the model's text: events for the client, spans for accounting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

__all__ = [
    "Content",
    "Event",
    "Reasoning",
    "Span",
    "SpanKind",
    "ToolCallDelta",
    "ToolCallEnd",
    "ToolCallStart",
    "merge_events",
]


@dataclass(frozen=True, slots=True)
class Reasoning:
    """A piece of the thought."""

    text: str


@dataclass(frozen=True, slots=True)
class Content:
    """A piece of the answer."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallStart:
    """Call number `index`, from 0, of the function `name`, which the request may not know."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A fragment of the JSON text of the arguments, which is an object."""

    index: int
    arguments: str


@dataclass(frozen=True, slots=True)
class ToolCallEnd:
    """The call is complete, and so is its JSON."""

    index: int


Event = Reasoning | Content | ToolCallStart | ToolCallDelta | ToolCallEnd

SpanKind = Literal["reasoning", "content", "arguments", "tag", "whitespace", "cut_value"]


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of the input and what became of it. The last three kinds are in no event."""

    kind: SpanKind
    text: str


def merge_events(events: Sequence[Event]) -> list[Event]:
    """The same events with neighbours of a kind made one."""
    merged: list[Event] = []
    for (kind, index), group in groupby(events, _merge_key):
        run = list(group)
        if kind is ToolCallDelta:
            parts = [event.arguments for event in run if isinstance(event, ToolCallDelta)]
            merged.append(ToolCallDelta(index, "".join(parts)))
        elif kind is Content or kind is Reasoning:
            parts = [event.text for event in run if isinstance(event, Content | Reasoning)]
            merged.append(kind("".join(parts)))
        else:
            merged += run
    return merged


def _merge_key(event: Event) -> tuple[type[Event], int]:
    return type(event), event.index if isinstance(event, ToolCallDelta) else -1
