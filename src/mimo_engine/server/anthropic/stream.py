"""Deltas of a turn to content blocks: the events of a stream, and the blocks that they add up to.

A whole answer is made of the same events that a stream would have sent, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec
from pydantic_core import from_json

from mimo_engine.chat.events import ToolCallEnd
from mimo_engine.server.anthropic.objects import (
    HIDDEN,
    UNSIGNED,
    BlockDelta,
    BlockEvent,
    BlockStart,
    BlockStop,
    ContentBlock,
    InputJsonDelta,
    SignatureDelta,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolUse,
)
from mimo_engine.server.objects import Delta, ToolCall
from mimo_engine.server.sealed_thoughts import sealed

__all__ = ["BlockStream", "blocks_of"]


class BlockStream:
    """One block is open at a time; one of another kind, or another call, ends it. Text that comes
    while a call is open may stand within it, so it waits until the call has ended.

    `shows_thinking` False: a thought is in its signature alone.
    """

    def __init__(self, *, shows_thinking: bool) -> None:
        self._shows_thinking = shows_thinking
        self._index = -1
        self._open: ContentBlock | None = None
        self._thought: list[str] = []
        self._waiting: list[str] = []

    def events(self, delta: Delta | ToolCallEnd) -> Iterator[BlockEvent]:
        if isinstance(delta, ToolCallEnd):
            yield from self._end_call()
            return
        if delta.reasoning_content:
            yield from self._think(delta.reasoning_content)
        if delta.content and isinstance(self._open, ToolUse):
            self._waiting.append(delta.content)
        elif delta.content:
            yield from self._say(delta.content)
        for call in delta.tool_calls or ():
            yield from self._call(call)

    def end(self) -> Iterator[BlockEvent]:
        """Close what is open."""
        yield from self._end_call()
        if self._open is None:
            return
        if isinstance(self._open, Thinking):
            thought, self._thought = "".join(self._thought), []
            signature = UNSIGNED if self._shows_thinking else sealed(thought, HIDDEN)
            yield BlockDelta(self._index, SignatureDelta(signature))
        self._open = None
        yield BlockStop(self._index)

    def _end_call(self) -> Iterator[BlockEvent]:
        if not isinstance(self._open, ToolUse):
            return
        self._open = None
        yield BlockStop(self._index)
        if self._waiting:
            text, self._waiting = "".join(self._waiting), []
            yield from self._say(text)

    def _begin(self, block: ContentBlock) -> Iterator[BlockEvent]:
        yield from self.end()
        self._index += 1
        self._open = block
        yield BlockStart(self._index, block)

    def _say(self, text: str) -> Iterator[BlockEvent]:
        if not isinstance(self._open, Text):
            yield from self._begin(Text(""))
        yield BlockDelta(self._index, TextDelta(text))

    def _think(self, text: str) -> Iterator[BlockEvent]:
        if not isinstance(self._open, Thinking):
            yield from self._begin(Thinking("", ""))
        if self._shows_thinking:
            yield BlockDelta(self._index, ThinkingDelta(text))
        else:
            self._thought.append(text)

    def _call(self, call: ToolCall) -> Iterator[BlockEvent]:
        if call.id is not None:
            id_ = "toolu_" + call.id.removeprefix("call_")
            yield from self._begin(ToolUse(id_, call.function.name or "", {}))
        if call.function.arguments:
            yield BlockDelta(self._index, InputJsonDelta(call.function.arguments))


def blocks_of(events: Sequence[BlockEvent]) -> list[ContentBlock]:
    """What a client makes of them."""
    blocks: list[ContentBlock] = []
    pieces: list[str] = []
    for event in events:
        match event:
            case BlockStart(content_block=block):
                blocks.append(block)
                pieces = []
            case BlockDelta(
                delta=TextDelta(text=text)
                | ThinkingDelta(thinking=text)
                | InputJsonDelta(partial_json=text)
            ):
                pieces.append(text)
            case BlockDelta(delta=SignatureDelta(signature=signature)):
                blocks[-1] = Thinking("".join(pieces), signature)
            case BlockStop():
                blocks[-1] = _filled(blocks[-1], "".join(pieces))
    return blocks


def _filled(block: ContentBlock, text: str) -> ContentBlock:
    match block:
        case Text():
            return Text(text)
        case ToolUse(id=id_, name=name):
            return ToolUse(id_, name, _input(text))
        case Thinking():
            return block


def _input(text: str) -> msgspec.Raw | dict:
    """Numbers keep their spelling. Of a call that was cut: the arguments that are whole, which is
    what Anthropic's client makes of such a stream."""
    try:
        msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        return msgspec.Raw(text.encode())
    except msgspec.DecodeError:
        return from_json(text, allow_partial=True) if text else {}
