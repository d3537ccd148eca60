"""Requests about a conversation: what the model reads, how it thinks, which tools it may call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, model_validator

from mimo_engine.config.generation import SamplingDefaults
from mimo_engine.config.sampling import MAX_LOGPROBS, SamplingParams
from mimo_engine.errors import RequestError
from mimo_engine.server.schemas import RequestModel, SamplingRequest

__all__ = ["ChatRequest", "Conversation", "TokenizeRequest"]


class Conversation(RequestModel):
    """What decides the text that the model reads."""

    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "functions": ([],),
        "function_call": ("none", "auto"),
        "tools": ([],),
        "tool_choice": ("none", "auto"),
    }

    messages: list[dict[str, Any]]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_effort: str | float | None = None
    reasoning: dict[str, Any] | None = None
    thinking: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _check_open_end(self) -> Conversation:
        if self.continue_final_message and self.add_generation_prompt:
            raise RequestError(
                "continue_final_message and add_generation_prompt exclude each other",
                param="continue_final_message",
            )
        return self

    def template_kwargs(self) -> dict[str, Any]:
        """chat_template_kwargs, with the other ways to switch thinking mapped on the template's
        (protocol.md 3.3): the model has on and off, no degrees."""
        kwargs = dict(self.chat_template_kwargs or {})
        thinks = self._thinks()
        if thinks is not None:
            kwargs.setdefault("enable_thinking", thinks)
        return kwargs

    def _thinks(self) -> bool | None:
        if self.thinking is not None:
            return _one_of(self.thinking, "thinking", "type", {"enabled": True, "disabled": False})
        effort = self.reasoning_effort
        if self.reasoning is not None:
            if "effort" not in self.reasoning:
                switch = {True: True, False: False}
                return _one_of(self.reasoning, "reasoning", "enabled", switch)
            if len(self.reasoning) > 1:
                raise RequestError(
                    "reasoning must have one of the keys 'effort' and 'enabled', and no other",
                    param="reasoning",
                )
            effort = self.reasoning["effort"]
        if effort is None:
            return None
        if isinstance(effort, str) and effort in _EFFORTS:
            return effort != "none"
        if isinstance(effort, int | float) and 0 <= effort < 1:
            return True
        raise RequestError(
            f"reasoning_effort is {effort!r}: choose one of {', '.join(_EFFORTS)}, or a number "
            "from 0 up to 0.99",
            param="reasoning_effort",
        )


class ChatRequest(Conversation, SamplingRequest):
    """POST /v1/chat/completions."""

    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        **Conversation.not_served,
        "audio": (),
        "modalities": (["text"],),
        "response_format": ({"type": "text"},),
        "separate_reasoning": (False,),
        "verbosity": (),
        "web_search_options": (),
    }

    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_logprobs(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        return self

    def sampling_params(self, defaults: SamplingDefaults) -> SamplingParams:
        limit = self.max_completion_tokens
        return self._sampling_params(
            defaults,
            max_tokens=self.max_tokens if limit is None else limit,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


class TokenizeRequest(Conversation):
    """POST /tokenize: one of `prompt` and `messages`."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] = Field(default_factory=list)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _check_one(self) -> TokenizeRequest:
        if (self.prompt is None) == (not self.messages):
            raise RequestError("give either prompt or messages", param="prompt")
        return self


_EFFORTS = ("none", "minimal", "low", "medium", "high", "xhigh", "ultra", "max")


def _one_of(given: Mapping[str, Any], name: str, key: str, values: Mapping[Any, bool]) -> bool:
    value = given.get(key)
    if len(given) == 1 and isinstance(value, str | bool) and value in values:
        return values[value]
    raise RequestError(
        f"{name} must be an object with the one key {key!r} and a value of "
        f"{', '.join(map(repr, values))}",
        param=name,
    )
