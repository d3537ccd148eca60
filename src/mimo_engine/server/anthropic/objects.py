"""Answers of the Messages API and the events of its streams, as Anthropic's clients read them.

Structs of msgspec, as in server/objects.py. The tag of an event is also the name of its line
`event:`.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

UNSIGNED = "unsigned"
"""The signature of a thought that is shown. It proves nothing: this server takes back any thought
as it is given. Clients keep it unread, send both back, and drop a thought without one."""
HIDDEN = "thought:"
"""A signature that begins so holds a thought that the client wants not shown (`display: omitted`),
so that the next turn can still have it."""

StopReason = Literal[
    "end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"
]


class Text(msgspec.Struct, tag="text"):
    text: str


class Thinking(msgspec.Struct, tag="thinking"):
    thinking: str
    signature: str


class ToolUse(msgspec.Struct, tag="tool_use"):
    id: str
    name: str
    input: Any
    """An object."""


ContentBlock = Text | Thinking | ToolUse


class OutputTokensDetails(msgspec.Struct, frozen=True):
    thinking_tokens: int
    """From <think> to </think>, both included."""


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Its first three add up to the prompt."""

    input_tokens: int
    """Those that were computed for this request."""
    cache_creation_input_tokens: int = 0
    """Always: a cache that nobody asks for has no price."""
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails


class InputTokens(msgspec.Struct, frozen=True):
    input_tokens: int


class Message(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[ContentBlock]
    stop_reason: StopReason | None = None
    """None, and the next too, where a stream begins."""
    stop_sequence: str | None = None
    usage: Usage


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputJsonDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class Stop(msgspec.Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: Message


class Ping(msgspec.Struct, frozen=True, tag="ping"):
    pass


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: ContentBlock


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputJsonDelta


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: Stop
    usage: Usage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    pass


BlockEvent = BlockStart | BlockDelta | BlockStop
Event = MessageStart | Ping | BlockEvent | MessageDelta | MessageStop
