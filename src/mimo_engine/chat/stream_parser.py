"""The model's text to reasoning, content and tool calls, while it arrives.

The state machine of protocol.md 4.7. What must hold:

- The events do not depend on how the text was cut, once neighbours are merged (`merge_events`).
- Nothing is lost. Every character is in an event or in a span that is dropped by name: a tag, the
  template's white space around tags, or the value of a typed parameter that was cut off. What is
  inside a call and no part of it by the format (text between parameters, a parameter given twice,
  of which the first counts because it has been sent) is content.
- Values are exact: no trimming, no unescaping. The arguments of a complete call are a JSON object.
- The work is linear. Only the end of the text that may become a tag is held, and white space whose
  meaning the next character decides.

`<tool_call>` begins a call when a function follows it; otherwise it was quoted, and is text of
where it stood. A forgotten `</parameter>` is seen by the tag that follows the value: a
`<parameter=` that starts a line, or the end of the call, which is `</function>` and `</tool_call>`
or the latter alone, where one of them starts a line or only another `<tool_call>` or the end of the
output follows. No lone closing tag counts, since values are often source code that mentions one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from enum import Enum, auto
from typing import Literal

from mimo_engine.chat.argument import Argument
from mimo_engine.chat.events import (
    Content,
    Event,
    Reasoning,
    Span,
    SpanKind,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    merge_events,
)
from mimo_engine.chat.tag_reader import (
    CALL,
    END_CALL,
    END_FUNCTION,
    END_PARAMETER,
    END_THINK,
    FUNCTION,
    PARAMETER,
    THINK,
    TagReader,
    Tags,
    name_in,
)
from mimo_engine.chat.tools import STRING, ToolSchema

__all__ = ["StreamParser", "Thinking", "thinking_after"]

Thinking = Literal["maybe", "open", "off", "plain"]
"""How an output begins: perhaps with `<think>`, within a thought, or after it.

"plain" is for requests that want reasoning left in the content: its tags mean nothing.
"""


def thinking_after(prompt: str) -> Thinking:
    """How the output begins after a rendered prompt (protocol.md 3.3, 3.6).

    Only the prompt's last turn counts, which is the generation prompt or an assistant's turn that
    is to be continued.
    """
    _, _, turn = prompt.rpartition("<|im_start|>")
    _, _, turn = turn.partition("\n")
    opened, closed = turn.rfind("<think>"), turn.rfind("</think>")
    if opened > closed:
        return "open"
    return "off" if turn.strip() else "maybe"


_THINK_TAGS = Tags(THINK, END_THINK)
_FUNCTION_TAG = Tags(FUNCTION)
_FUNCTION_TAGS = Tags(PARAMETER, END_FUNCTION, END_CALL, CALL, FUNCTION)
_VALUE_TAGS = Tags(END_PARAMETER, PARAMETER, END_FUNCTION, END_CALL)
_VALUE_END_TAG, _VALUE_END_TAG_CLOSED = Tags(END_CALL), Tags(CALL)
_AFTER_TAGS, _AFTER_TAGS_CLOSED = Tags(END_CALL, CALL, FUNCTION), Tags(CALL, FUNCTION)


class _State(Enum):
    MAYBE_THINK = auto()
    REASONING = auto()
    CONTENT = auto()
    IN_CALL = auto()
    IN_FUNCTION = auto()
    STRAY = auto()  # text in a function that belongs to no parameter
    IN_PARAMETER = auto()
    VALUE_END = auto()  # after a tag that ends the value or is part of it; what follows decides
    AFTER_CALL = auto()


_WITHIN_CALL = (
    _State.IN_CALL,
    _State.IN_FUNCTION,
    _State.STRAY,
    _State.IN_PARAMETER,
    _State.VALUE_END,
)


class StreamParser:
    """One output's text to events. `tools` None or empty: no calls, their tags are content.

    `tool_call_in_thinking` says what a call within an open thought is: a call that also ends the
    thought, or part of it. `spans`, when given, is filled with what became of each piece of the
    input; their texts together are the input.

    One stray `</think>` before any content is dropped; one that follows content was meant.
    """

    def __init__(
        self,
        *,
        thinking: Thinking,
        tools: Mapping[str, ToolSchema] | None = None,
        tool_call_in_thinking: Literal["rescue", "leave"] = "rescue",
        spans: list[Span] | None = None,
    ) -> None:
        self._tools = tools or {}
        rescue = bool(tools) and tool_call_in_thinking == "rescue"
        self._reasoning_tags = Tags(END_THINK, *([CALL] if rescue else []))
        self._content_tags = Tags(
            *([END_THINK] if thinking != "plain" else []),
            *([CALL, FUNCTION] if tools else []),
        )
        start = {"maybe": _State.MAYBE_THINK, "open": _State.REASONING}
        self._state = start.get(thinking, _State.CONTENT)
        self._steps: dict[_State, Callable[[], bool]] = {
            _State.MAYBE_THINK: self._maybe_think,
            _State.REASONING: self._reasoning,
            _State.CONTENT: self._content,
            _State.IN_CALL: self._in_call,
            _State.IN_FUNCTION: self._in_function,
            _State.STRAY: self._stray,
            _State.IN_PARAMETER: self._in_parameter,
            _State.VALUE_END: self._value_end,
            _State.AFTER_CALL: self._after_call,
        }
        self._spans = spans
        self._events: list[Event] = []
        self._finished = False

        self._reader = TagReader()
        # White space and tags that were read, and may turn out to be text.
        self._gap: list[Span] = []

        self._line_start = True  # the content is at the start of a line
        self._may_drop_stray = True
        self._call_origin = _State.CONTENT  # whose text a `<tool_call>` without a function is

        self._num_calls = 0
        self._num_complete_calls = 0
        self._schema: ToolSchema | None = None
        self._given: set[str] = set()  # parameters of this call
        self._block_closed = False  # `</tool_call>` was read

        self._argument: Argument | None = None  # of the open parameter; None: a repeated one
        self._newline = False  # the value's last character, held: the next tag may start a line

    @property
    def num_complete_calls(self) -> int:
        """Calls that have ended."""
        return self._num_complete_calls

    @property
    def has_incomplete_call(self) -> bool:
        """Whether a call has begun that has not ended; after `finish`, that was cut."""
        return self._state in _WITHIN_CALL

    def push(self, text: str) -> list[Event]:
        """What `text`, the next piece of the output, adds."""
        assert not self._finished
        self._reader.push(text)
        while self._steps[self._state]():
            pass
        return self._take_events()

    def finish(self) -> list[Event]:
        """What was held, once the output has ended. A call that was cut is not completed."""
        assert not self._finished
        self._finished = True
        rest = self._reader.rest()
        if self._state is _State.VALUE_END:
            if self._newline or self._block_closed:
                self._end_call_early()
            else:
                self._add_value(self._take_gap())
                self._state = _State.IN_PARAMETER
        between_tags = self._state in (_State.IN_CALL, _State.IN_FUNCTION) or (
            self._state is _State.AFTER_CALL and not self._block_closed
        )
        if between_tags:
            self._drop_gap()
            self._record("tag", rest)
        elif self._state is _State.IN_PARAMETER:
            self._cut_value(rest)
        elif self._state is _State.REASONING:
            self._add_reasoning(rest)
        else:
            self._add_content(self._take_gap() + rest)
        return self._take_events()

    # Steps: each reads as far as it can in its state. False: it waits for more text.

    def _maybe_think(self) -> bool:
        tag = self._next_tag(_THINK_TAGS)
        if tag is None:
            return False
        if tag:
            self._drop_gap()
            self._drop_tag(tag)
        else:
            self._add_content(self._take_gap())
        self._state = _State.REASONING if tag == THINK else _State.CONTENT
        return True

    def _reasoning(self) -> bool:
        text, tag = self._reader.text_until(self._reasoning_tags)
        self._add_reasoning(text)
        if tag == END_THINK:
            self._drop_tag(tag)
            self._state = _State.CONTENT
        elif tag:
            self._open_block(tag, _State.REASONING)
        return bool(tag)

    def _content(self) -> bool:
        text, tag = self._reader.text_until(self._content_tags)
        self._add_content(text)
        if not tag:
            return False
        if tag == CALL:
            self._open_block(tag, _State.CONTENT)
        elif tag == END_THINK and self._may_drop_stray:
            self._may_drop_stray = False
            self._drop_tag(tag)
        elif tag.startswith(FUNCTION) and self._line_start:
            self._begin_call(tag)
        else:
            self._reader.skip(tag)
            self._add_content(tag)
        return True

    def _in_call(self) -> bool:
        tag = self._next_tag(_FUNCTION_TAG)
        if tag is None:
            return False
        if tag:
            self._drop_gap()
            self._begin_call(tag)
        elif self._call_origin is _State.REASONING:
            self._add_reasoning(self._take_gap())
            self._state = _State.REASONING
        else:
            self._add_content(self._take_gap())
            self._state = _State.CONTENT
        return True

    def _in_function(self) -> bool:
        tag = self._next_tag(_FUNCTION_TAGS)
        if tag is None:
            return False
        if not tag:
            self._add_content(self._take_gap())
            self._state = _State.STRAY
            return True
        self._drop_gap()
        if tag.startswith(PARAMETER):
            self._begin_parameter(tag)
        else:
            if tag == END_FUNCTION:
                self._drop_tag(tag)
            self._end_call()
        return True

    def _stray(self) -> bool:
        text, tag = self._reader.text_until(_FUNCTION_TAGS)
        self._add_content(text)
        if tag:
            self._state = _State.IN_FUNCTION
        return bool(tag)

    def _in_parameter(self) -> bool:
        text, tag = self._reader.text_until(_VALUE_TAGS)
        self._add_value(text)
        if not tag:
            return False
        if tag == END_PARAMETER:
            self._put_newline()
            if self._argument is None:
                self._reader.skip(tag)
                self._add_content(tag)
            else:
                self._add_arguments(*self._argument.end())
                self._drop_tag(tag)
            self._state = _State.IN_FUNCTION
        elif not tag.startswith(PARAMETER):
            self._hold_tag(tag)
            self._block_closed = tag == END_CALL
            if self._newline and self._block_closed:
                self._end_call_early()
            else:
                self._state = _State.VALUE_END
        elif self._newline:
            self._end_value_early()
            self._state = _State.IN_FUNCTION
        else:
            self._reader.skip(tag)
            self._add_value(tag)
        return True

    def _value_end(self) -> bool:
        tag = self._next_tag(_VALUE_END_TAG_CLOSED if self._block_closed else _VALUE_END_TAG)
        if tag is None:
            return False
        if tag == END_CALL:
            starts_line = self._newline or self._gap[-1].text.endswith("\n")
            self._hold_tag(tag)
            self._block_closed = True
            if starts_line:
                self._end_call_early()
        elif tag:
            self._end_call_early()
        else:
            self._block_closed = False
            self._add_value(self._take_gap())
            self._state = _State.IN_PARAMETER
        return True

    def _after_call(self) -> bool:
        tag = self._next_tag(_AFTER_TAGS_CLOSED if self._block_closed else _AFTER_TAGS)
        if tag is None:
            return False
        if tag == CALL:
            self._open_block(tag, _State.CONTENT)
        elif tag == END_CALL:
            self._drop_gap()
            self._drop_tag(tag)
            self._block_closed = True
        elif tag:
            self._drop_gap()
            self._begin_call(tag)
        else:
            self._line_start = True
            self._add_content(self._take_gap())
            self._state = _State.CONTENT
        return True

    # Calls and their parameters

    def _open_block(self, tag: str, origin: _State) -> None:
        self._hold_tag(tag)
        self._call_origin = origin
        self._state = _State.IN_CALL

    def _begin_call(self, tag: str) -> None:
        self._drop_tag(tag)
        name = name_in(tag)
        self._schema = self._tools.get(name)
        self._given.clear()
        self._block_closed = False
        self._events.append(ToolCallStart(self._num_calls, name))
        self._num_calls += 1
        self._state = _State.IN_FUNCTION

    def _end_call(self) -> None:
        self._add_arguments("}" if self._given else "{}", "")
        self._events.append(ToolCallEnd(self._num_calls - 1))
        self._num_complete_calls += 1
        self._state = _State.AFTER_CALL

    def _begin_parameter(self, tag: str) -> None:
        self._state = _State.IN_PARAMETER
        name = name_in(tag)
        if name in self._given:
            self._argument = None
            self._reader.skip(tag)
            self._add_content(tag)
            return
        self._drop_tag(tag)
        self._argument = Argument(STRING if self._schema is None else self._schema.types_of(name))
        key = (", " if self._given else "{") + json.dumps(name, ensure_ascii=False) + ": "
        self._given.add(name)
        self._add_arguments(key + self._argument.begin(), "")

    def _add_value(self, text: str) -> None:
        """Text of the open parameter. Its last newline is held, for a tag that may follow."""
        if not text:
            return
        if self._newline:
            text = "\n" + text
        self._newline = text.endswith("\n")
        self._put(text[:-1] if self._newline else text)

    def _put(self, text: str) -> None:
        if self._argument is None:
            self._add_content(text)
        else:
            self._add_arguments(*self._argument.add(text))

    def _put_newline(self) -> None:
        if self._newline:
            self._newline = False
            self._put("\n")

    def _end_value_early(self) -> None:
        """By a tag that implies a forgotten `</parameter>`. A newline before it is no value."""
        if self._argument is not None:
            self._add_arguments(*self._argument.end())
        if self._newline:
            self._newline = False
            self._record("whitespace", "\n")

    def _end_call_early(self) -> None:
        """By the tags in the gap. White space after them stays there, as after any call."""
        after: list[Span] = []
        self._end_value_early()
        while self._gap[-1].kind == "whitespace":
            after.append(self._gap.pop())
        self._drop_gap()
        self._gap = after[::-1]
        self._end_call()

    def _cut_value(self, rest: str) -> None:
        self._add_value(rest)
        self._put_newline()
        if self._argument is not None:
            self._add_arguments(*self._argument.cut())

    # Tags, and white space and tags that may be text

    def _next_tag(self, tags: Tags) -> str | None:
        """As the reader's, after the white space that may come before it."""
        if space := self._reader.space():
            self._gap.append(Span("whitespace", space))
        return self._reader.next_tag(tags)

    def _hold_tag(self, tag: str) -> None:
        self._reader.skip(tag)
        self._gap.append(Span("tag", tag))

    def _drop_tag(self, tag: str) -> None:
        self._reader.skip(tag)
        self._record("tag", tag)

    def _drop_gap(self) -> None:
        for span in self._gap:
            self._record(span.kind, span.text)
        self._gap.clear()

    def _take_gap(self) -> str:
        text = "".join(span.text for span in self._gap)
        self._gap.clear()
        return text

    # Writing

    def _add_reasoning(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text))
            self._record("reasoning", text)

    def _add_content(self, text: str) -> None:
        if text:
            self._line_start = text.endswith("\n")
            self._may_drop_stray = False
            self._events.append(Content(text))
            self._record("content", text)

    def _add_arguments(self, fragment: str, raw: str) -> None:
        if fragment:
            self._events.append(ToolCallDelta(self._num_calls - 1, fragment))
        self._record("arguments" if fragment else "cut_value", raw)

    def _record(self, kind: SpanKind, text: str) -> None:
        if text and self._spans is not None:
            self._spans.append(Span(kind, text))

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        return merge_events(events) if len(events) > 1 else events
