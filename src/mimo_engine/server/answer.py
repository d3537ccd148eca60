"""One choice of a chat completion while it grows: reasoning, content and tool calls out of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from uuid import uuid4

from msgspec import UNSET

from mimo_engine.chat.stream_parser import (
    Content,
    Event,
    Reasoning,
    StreamParser,
    Thinking,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    merge_events,
)
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import ThinkingSpec
from mimo_engine.server.objects import ChatMessage, Delta, FunctionCall, ToolCall

__all__ = ["Answer", "ThoughtCounter"]


@dataclass(slots=True)
class _Call:
    name: str
    id: str = field(default_factory=lambda: f"call_{uuid4().hex[:24]}")
    arguments: list[str] = field(default_factory=list)
    is_whole: bool = False


class Answer:
    """Text in, deltas of a stream out, and at the end the message that they add up to.

    `streams_reasoning` False: all of a thought is one delta, when it ends. The answer is over
    (`is_over`) when `max_calls` calls are whole; None: whatever their number.
    """

    def __init__(
        self,
        parser: StreamParser,
        *,
        streams_reasoning: bool = True,
        max_calls: int | None = None,
    ) -> None:
        self._parser = parser
        self._streams_reasoning = streams_reasoning
        self._max_calls = max_calls
        self._reasoning: list[str] = []
        self._num_sent = 0
        """Pieces of reasoning that deltas have had."""
        self._content: list[str] = []
        self._calls: list[_Call] = []
        self.is_over = False
        self.num_left = 0
        """Pieces behind the one with which the answer was over."""

    def take(self, pieces: Sequence[str], *, is_last: bool) -> list[Delta | ToolCallEnd]:
        """What the pieces of an update's text added, and which calls they ended. `is_last`: no more
        comes, and what was held is let go."""
        events: list[Event] = []
        for number, piece in enumerate(pieces, start=1):
            events += self._parser.push(piece)
            if self._max_calls is not None and self._parser.num_complete_calls >= self._max_calls:
                self.num_left = len(pieces) - number
                break
        if is_last:
            events += self._parser.finish()
        deltas = [delta for event in merge_events(events) for delta in self._deltas(event)]
        return [*deltas, *self._held_reasoning()] if is_last else deltas

    def message(self) -> ChatMessage:
        content = "".join(self._content)
        calls = [
            ToolCall(
                id=call.id,
                function=FunctionCall(name=call.name, arguments="".join(call.arguments)),
            )
            for call in self._calls
        ]
        return ChatMessage(
            content=(content or None) if calls else content,
            reasoning_content="".join(self._reasoning) or None,
            tool_calls=calls or UNSET,
        )

    @property
    def calls_are_whole(self) -> bool:
        """True when there are calls and none was cut."""
        return bool(self._calls) and all(call.is_whole for call in self._calls)

    def _deltas(self, event: Event) -> Iterator[Delta | ToolCallEnd]:
        if self.is_over:
            return
        if isinstance(event, Reasoning):
            self._reasoning.append(event.text)
            if self._streams_reasoning:
                self._num_sent += 1
                yield Delta(reasoning_content=event.text)
            return
        yield from self._held_reasoning()
        match event:
            case Content(text=text):
                self._content.append(text)
                yield Delta(content=text)
            case ToolCallStart(index=index, name=name):
                call = _Call(name)
                self._calls.append(call)
                yield _call_delta(index, "", call)
            case ToolCallDelta(index=index, arguments=piece):
                self._calls[index].arguments.append(piece)
                yield _call_delta(index, piece)
            case ToolCallEnd(index=index):
                self._calls[index].is_whole = True
                self.is_over = index + 1 == self._max_calls
                yield event

    def _held_reasoning(self) -> Iterator[Delta]:
        held = self._reasoning[self._num_sent :]
        self._num_sent = len(self._reasoning)
        if held:
            yield Delta(reasoning_content="".join(held))


def _call_delta(index: int, arguments: str, new: _Call | None = None) -> Delta:
    """A piece of a call; the first, which `new` is given for, has its id and name."""
    function = FunctionCall(name=new and new.name, arguments=arguments)
    return Delta(tool_calls=[ToolCall(index=index, id=new and new.id, function=function)])


class ThoughtCounter:
    """Counts the tokens of an output's thought, its two tags included.

    `spec`: what the thought is held to; None: nothing.
    """

    def __init__(self, thinking: Thinking, tokenizer: Tokenizer, spec: ThinkingSpec | None) -> None:
        self._tokenizer = tokenizer
        self._start_id = tokenizer.find_id("<think>")
        self._end_id = tokenizer.find_id("</think>")
        self._may_begin = thinking == "maybe"
        self._is_open = thinking == "open"
        self._budget = spec and spec.budget
        self._call_id = spec and spec.call_id
        self.num_tokens = 0

    def add(self, token_ids: Iterable[int]) -> bool:
        """Whether the budget ended the thought within these tokens."""
        is_spent = False
        for token_id in token_ids:
            if self._may_begin:
                self._is_open = token_id == self._start_id
                # White space before the tag does not matter to the parser either.
                self._may_begin = self._tokenizer.token_bytes(token_id).isspace()
            if self._is_open:
                self.num_tokens += 1
                self._is_open = token_id != self._end_id
                if token_id == self._call_id:
                    self._budget = None  # as in grammar/constraint.py
                if not self._is_open and self._budget is not None:
                    is_spent = self.num_tokens > self._budget
        return is_spent
