"""Responses of the API, in OpenAI's shapes with the fields that SGLang and vLLM add.

Structs of msgspec, not pydantic models: a stream encodes one of them for each token. A field that
is UNSET is not sent; None is sent as null.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

from mimo_engine.chat.tokenizer import Tokenizer


def finite(logprob: float) -> float:
    """JSON has no minus infinity; -9999 is what OpenAI sends for it."""
    return max(logprob, -9999.0)


class PromptTokensDetails(msgspec.Struct, frozen=True):
    cached_tokens: int
    image_tokens: int | UnsetType = UNSET
    """Of requests with media alone, as the next two."""
    video_tokens: int | UnsetType = UNSET
    audio_tokens: int | UnsetType = UNSET
    """The sound of videos included."""


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    reasoning_tokens: int | UnsetType = UNSET
    """From <think> to </think>, both included. Of chat alone, as what follows."""
    completion_tokens_details: CompletionTokensDetails | UnsetType = UNSET


class TopLogprob(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int]
    logprob: float

    @classmethod
    def of(cls, token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
        data = tokenizer.token_bytes(token_id)
        return cls(data.decode("utf-8", errors="replace"), list(data), finite(logprob))


class ChatLogprob(TopLogprob, frozen=True):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    content: list[ChatLogprob]


class FunctionCall(msgspec.Struct, frozen=True, kw_only=True):
    """All of a call, or in a stream a piece of it: the name comes with the first."""

    name: str | None
    arguments: str
    """JSON."""


class ToolCall(msgspec.Struct, frozen=True, kw_only=True):
    index: int | UnsetType = UNSET
    """In a stream: which of the calls of a message this is a piece of."""
    id: str | None
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] = "assistant"
    content: str | None
    """None: nothing but tool calls."""
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    matched_stop: str | int | None


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class Delta(msgspec.Struct, frozen=True, kw_only=True):
    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning_content: str | None = None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: str | int | None = None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    """Absent, null or given: as stream_options asks."""


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    text_offset: list[int]
    """Where each token begins in the choice's text (the prompt included when it is echoed)."""
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]


class PromptLogprob(msgspec.Struct, frozen=True, kw_only=True):
    logprob: float
    rank: int | None
    """None for a token that is only there because it is likely."""
    decoded_token: str


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: str | None = None
    matched_stop: str | int | None = None
    prompt_logprobs: list[dict[str, PromptLogprob] | None] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET
    """Where they were asked for, as the next."""
    prompt_token_ids: list[int] | UnsetType = UNSET
    """In a stream, of the first chunk alone."""


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole answer, and also each chunk of a stream."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "mimo-engine"
    max_model_len: int
