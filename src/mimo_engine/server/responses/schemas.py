"""Requests of POST /v1/responses: names, types and bounds.

What must hold is what holds for chat (server/schemas.py): no field that would change the answer is
ignored. The fields without an OpenAI counterpart are those of chat, under the same names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from mimo_engine.errors import RequestError
from mimo_engine.server.schemas import SharedFields, Strict

__all__ = ["ResponsesRequest"]

_ENCRYPTED_CONTENT = "reasoning.encrypted_content"
_MAX_PAIRS, _MAX_KEY_LEN, _MAX_VALUE_LEN = 16, 64, 512
"""Of metadata; lengths in characters."""


class ReasoningOptions(Strict):
    effort: str | float | None = None
    summary: str | None = None


class TextOptions(Strict):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ResponsesStreamOptions(Strict):
    include_obfuscation: bool | None = None
    """Either way there is none: it hides lengths from who watches encrypted traffic."""


class ResponsesRequest(SharedFields):
    """POST /v1/responses. None: as if the field were not there."""

    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "background": (False,),
        "context_management": ([],),
        "prompt": (),
        "top_logprobs": (0,),
    }
    successors: ClassVar[Mapping[str, str]] = {
        "conversation": "previous_response_id",
        "function_call": "tool_choice",
        "functions": "tools",
        "max_completion_tokens": "max_output_tokens",
        "max_tokens": "max_output_tokens",
        "messages": "input",
        "reasoning_effort": "reasoning.effort",
        "response_format": "text.format",
    }

    input: str | list[dict[str, Any]]
    instructions: str | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    include: list[str] | None = None
    stream_options: ResponsesStreamOptions | None = None

    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(default=None, ge=1)
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: str | None = None

    max_output_tokens: int | None = None

    metadata: dict[str, str] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    # Beyond OpenAI's, as in chat.
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
    thinking_token_budget: int | None = Field(default=None, ge=1)

    @property
    def seals_thoughts(self) -> bool:
        """The thought is asked for as an opaque text too."""
        return _ENCRYPTED_CONTENT in (self.include or ())

    @model_validator(mode="after")
    def _check(self) -> ResponsesRequest:
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options needs stream: true; remove it", param="stream_options"
            )
        for name in self.include or ():
            if name != _ENCRYPTED_CONTENT:
                raise RequestError(
                    f"include has {name!r}: only {_ENCRYPTED_CONTENT} is served", param="include"
                )
        pairs = self.metadata or {}
        if (
            len(pairs) > _MAX_PAIRS
            or any(len(key) > _MAX_KEY_LEN for key in pairs)
            or any(len(value) > _MAX_VALUE_LEN for value in pairs.values())
        ):
            raise RequestError(
                f"metadata takes {_MAX_PAIRS} pairs, keys of {_MAX_KEY_LEN} and values of "
                f"{_MAX_VALUE_LEN} characters at most",
                param="metadata",
            )
        return self

    @model_validator(mode="after")
    def _refuse_options_not_served(self) -> ResponsesRequest:
        reasoning, text = self.reasoning, self.text
        if reasoning is not None and reasoning.summary not in (None, "auto"):
            raise RequestError(
                "reasoning.summary: no summaries are made, and the thought itself is in the "
                "content of the reasoning item; use auto, or remove it",
                param="reasoning.summary",
            )
        if text is not None and text.verbosity not in (None, "medium"):
            raise RequestError(
                "text.verbosity: the model knows no degrees of it; use medium, or remove it",
                param="text.verbosity",
            )
        if self.truncation not in (None, "disabled"):
            raise RequestError(
                f"truncation is {self.truncation!r:.80}: nothing is left out of a conversation "
                "that is too long; use disabled, and shorten the input",
                param="truncation",
            )
        return self
