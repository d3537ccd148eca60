"""What /v1/responses sends: the response, its items, and the events of a stream.

The shapes are those of OpenAI's API; structs of msgspec for the reason that objects.py of chat has.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from mimo_engine.server.objects import PromptTokensDetails, Usage

SEALED = "mimo1."
"""How `encrypted_content` begins: a thought for clients that keep nothing else of it, since they
ask for it in conversations that the server does not store."""

Status = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, kw_only=True, tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []
    """None are served here; clients require the list, here and in events."""


class ReasoningText(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning_text"):
    text: str


Part = OutputText | ReasoningText


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    id: str
    status: Status
    summary: list[Any] = []
    content: list[ReasoningText] = []
    encrypted_content: str | None = None


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    id: str
    status: Status
    role: Literal["assistant"] = "assistant"
    content: list[OutputText] = []


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    id: str
    status: Status
    call_id: str
    name: str
    arguments: str
    """JSON."""


OutputItem = ReasoningItem | MessageItem | CallItem


class InputTokensDetails(PromptTokensDetails, frozen=True, kw_only=True):
    cache_write_tokens: int = 0
    """Clients require it. It is what OpenAI charges for keeping a prefix, which is free here."""

    @classmethod
    def of(cls, details: PromptTokensDetails) -> InputTokensDetails:
        return cls(**msgspec.structs.asdict(details))


class OutputTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int

    @classmethod
    def of(cls, usage: Usage) -> ResponseUsage:
        return cls(
            input_tokens=usage.prompt_tokens,
            input_tokens_details=InputTokensDetails.of(usage.prompt_tokens_details),
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(usage.reasoning_tokens or 0),
            total_tokens=usage.total_tokens,
        )


class ResponseError(msgspec.Struct, frozen=True, kw_only=True):
    code: str
    message: str


class IncompleteDetails(msgspec.Struct, frozen=True):
    reason: str


class Response(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["response"] = "response"
    created_at: int
    completed_at: int | None = None
    """Unix times, s."""
    status: Literal["in_progress", "completed", "incomplete", "failed"] = "in_progress"
    background: bool = False
    error: ResponseError | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    max_tool_calls: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputItem] = []
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, Any]
    safety_identifier: str | None
    service_tier: str = "default"
    """The one that there is, whichever was asked for."""
    store: bool
    """Whether it can be asked for and continued by its id."""
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int = 0
    top_p: float
    truncation: str = "disabled"
    usage: ResponseUsage | None = None
    user: str | None


class Event(msgspec.Struct, kw_only=True):
    """One event of a stream; its number is given to it when it is sent."""

    sequence_number: int = -1


class _ResponseEvent(Event, kw_only=True):
    response: Response


class ResponseCreated(_ResponseEvent, tag="response.created"):
    pass


class ResponseInProgress(_ResponseEvent, tag="response.in_progress"):
    pass


class ResponseCompleted(_ResponseEvent, tag="response.completed"):
    pass


class ResponseIncomplete(_ResponseEvent, tag="response.incomplete"):
    pass


class ResponseFailed(_ResponseEvent, tag="response.failed"):
    pass


class ErrorEvent(Event, tag="error", kw_only=True):
    code: str | None
    message: str
    param: str | None


class ItemAdded(Event, tag="response.output_item.added", kw_only=True):
    output_index: int
    item: OutputItem


class ItemDone(Event, tag="response.output_item.done", kw_only=True):
    output_index: int
    item: OutputItem


class _OfItem(Event, kw_only=True):
    item_id: str
    output_index: int


class _OfPart(_OfItem, kw_only=True):
    content_index: int = 0
    """Items have one part."""


class PartAdded(_OfPart, tag="response.content_part.added", kw_only=True):
    part: Part


class PartDone(_OfPart, tag="response.content_part.done", kw_only=True):
    part: Part


class ReasoningDelta(_OfPart, tag="response.reasoning_text.delta", kw_only=True):
    delta: str


class ReasoningDone(_OfPart, tag="response.reasoning_text.done", kw_only=True):
    text: str


class TextDelta(_OfPart, tag="response.output_text.delta", kw_only=True):
    delta: str
    logprobs: list[Any] = []


class TextDone(_OfPart, tag="response.output_text.done", kw_only=True):
    text: str
    logprobs: list[Any] = []


class ArgumentsDelta(_OfItem, tag="response.function_call_arguments.delta", kw_only=True):
    delta: str


class ArgumentsDone(_OfItem, tag="response.function_call_arguments.done", kw_only=True):
    name: str
    arguments: str
