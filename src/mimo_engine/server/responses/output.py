"""A turn as output items, while it grows.

Items stand in the order in which they begin: a thought, a run of text, a call, a run of text. A
call or a thought ends the text before it. Text within a call that belongs to no parameter is a
message of its own, and the call goes on behind it: so two items may be open at once. What must
hold: the deltas of an item add up to the item, and the items to the message that chat would have.
"""

from __future__ import annotations

from mimo_engine.chat.events import ToolCallEnd
from mimo_engine.server.objects import Delta, ToolCall
from mimo_engine.server.responses.objects import Event, OutputItem, ReasoningItem, Status
from mimo_engine.server.responses.open_items import OpenCall, OpenItem, OpenMessage, OpenThought

__all__ = ["Output"]


class Output:
    """`seals_thoughts`: thoughts have encrypted_content."""

    def __init__(self, *, seals_thoughts: bool) -> None:
        self._seals_thoughts = seals_thoughts
        self._num_items = 0
        self._ended: dict[int, OutputItem] = {}
        self._thought: OpenThought | None = None
        self._message: OpenMessage | None = None
        self._call: OpenCall | None = None

    @property
    def items(self) -> list[OutputItem]:
        """Those that have ended, in order."""
        return [self._ended[i] for i in sorted(self._ended)]

    def take(self, delta: Delta | ToolCallEnd) -> list[Event]:
        if isinstance(delta, ToolCallEnd):
            return self._end(self._call, "completed")
        if delta.tool_calls:
            return self._take_call(delta.tool_calls[0])
        return self._take_text(delta)

    def finish(self, *, is_cut: bool) -> list[Event]:
        """End what is open. `is_cut`: there would have been more."""
        status: Status = "incomplete" if is_cut else "completed"
        events = self._end(self._thought, status)
        if not is_cut and not self._has_answer():
            # Clients look for a message in what was not cut.
            events += self._begin_message()
        for item in self._open():
            # A call that is whole has ended.
            events += self._end(item, "incomplete" if isinstance(item, OpenCall) else status)
        return events

    def _take_text(self, delta: Delta) -> list[Event]:
        events: list[Event] = []
        if delta.reasoning_content:
            if self._thought is None:
                events += self._end_all()
                self._thought = OpenThought(self._next_index(), seals=self._seals_thoughts)
                events += self._thought.begin()
            events += self._thought.add(delta.reasoning_content)
        if isinstance(delta.content, str):
            events += self._end(self._thought, "completed")
            if self._message is None:
                events += self._begin_message()
            assert self._message is not None
            events += self._message.add(delta.content)
        return events

    def _take_call(self, call: ToolCall) -> list[Event]:
        """A piece of a call; the first has an id and a name."""
        events: list[Event] = []
        if call.id is not None and call.function.name is not None:
            events += self._end_all()
            self._call = OpenCall(self._next_index(), call_id=call.id, name=call.function.name)
            events += self._call.begin()
        assert self._call is not None
        if call.function.arguments:
            events += self._call.add(call.function.arguments)
        return events

    def _begin_message(self) -> list[Event]:
        self._message = OpenMessage(self._next_index())
        return self._message.begin()

    def _next_index(self) -> int:
        self._num_items += 1
        return self._num_items - 1

    def _open(self) -> list[OpenItem]:
        found = [one for one in (self._thought, self._message, self._call) if one is not None]
        return sorted(found, key=lambda item: item.index)

    def _has_answer(self) -> bool:
        """Whether there is anything but a thought."""
        return bool(self._open()) or not all(
            isinstance(item, ReasoningItem) for item in self._ended.values()
        )

    def _end_all(self) -> list[Event]:
        return [event for item in self._open() for event in self._end(item, "completed")]

    def _end(self, item: OpenItem | None, status: Status) -> list[Event]:
        if item is None:
            return []
        self._ended[item.index], events = item.end(status)
        match item:
            case OpenThought():
                self._thought = None
            case OpenMessage():
                self._message = None
            case OpenCall():
                self._call = None
        return events
