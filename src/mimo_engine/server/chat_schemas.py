"""Requests about a conversation: what the model reads, how it thinks, which tools it may call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field, ValidationError, model_validator

from mimo_engine.chat.tools import tool_schemas
from mimo_engine.config.generation import SamplingDefaults
from mimo_engine.config.sampling import MAX_LOGPROBS, SamplingParams
from mimo_engine.errors import RequestError
from mimo_engine.server.schemas import RequestModel, SamplingRequest

__all__ = ["ChatRequest", "Conversation", "TokenizeRequest", "chat_request"]


class Conversation(RequestModel):
    """What decides the text that the model reads."""

    messages: list[dict[str, Any]]
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    enable_thinking: bool | None = None
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

    def shown_tools(self) -> list[dict[str, Any]]:
        """The tools that the model reads about, as `tool_choice` has it: all, none, or one.

        RequestError: a choice that there is not, or tools that are not well-formed.
        """
        tools = self.tools or []
        tool_schemas(tools)
        match self.tool_choice:
            case "none":
                return []
            case None | "auto":
                return tools
            case "required":
                if not tools:
                    raise RequestError(
                        "Tools cannot be empty if tool choice is set to required.", param="tools"
                    )
                return tools
            case {"function": {"name": str() as name}} as choice if choice == _choice_of(name):
                return [self._tool_named(name)]
        raise RequestError(
            "tool_choice must be none, auto, required, or an object such as "
            '{"type": "function", "function": {"name": "a tool"}}',
            param="tool_choice",
        )

    def _tool_named(self, name: str) -> dict[str, Any]:
        if not self.tools:
            raise RequestError(
                "Tools cannot be empty if tool choice is set to a specific tool.", param="tools"
            )
        for tool in self.tools:
            if tool["function"]["name"] == name:
                return tool
        raise RequestError(f"Tool '{name}' not found in tools list.", param="tool_choice")

    @property
    def must_call(self) -> bool:
        """The answer is a tool call whether the model likes it or not."""
        return self.tool_choice not in (None, "none", "auto")

    def template_kwargs(self) -> dict[str, Any]:
        """chat_template_kwargs, with the other ways to switch thinking mapped on the template's
        (protocol.md 3.3): the model has on and off, no degrees."""
        kwargs = dict(self.chat_template_kwargs or {})
        thinks = self._thinks()
        if thinks is not None:
            kwargs.setdefault("enable_thinking", thinks)
        return kwargs

    def _thinks(self) -> bool | None:
        if self.enable_thinking is not None:
            return self.enable_thinking
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
        "audio": (),
        "include_reasoning": (True,),
        "modalities": (["text"],),
        "verbosity": (),
        "web_search_options": (),
    }

    max_completion_tokens: int | None = None
    thinking_token_budget: int | None = Field(default=None, ge=1)
    separate_reasoning: bool | None = None
    stream_reasoning: bool | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: int | None = Field(default=None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check_combinations(self) -> ChatRequest:
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.must_call and self.format() is not None:
            raise RequestError(
                "a tool_choice that demands a call excludes response_format, structured_outputs, "
                "regex and ebnf: give one of them",
                param="tool_choice",
            )
        return self

    def sampling_params(self, defaults: SamplingDefaults) -> SamplingParams:
        limit = self.max_completion_tokens
        return self._sampling_params(
            defaults,
            max_tokens=self.max_tokens if limit is None else limit,
            logprobs=(self.top_logprobs or 0) if self.logprobs else None,
        )


def _choice_of(name: str) -> dict[str, Any]:
    """The one form that names a tool."""
    return {"type": "function", "function": {"name": name}}


def chat_request(fields: Mapping[str, Any]) -> ChatRequest:
    """For APIs whose requests become ones for chat. RequestError: its first fault, in chat's
    words."""
    try:
        return ChatRequest(**fields)
    except ValidationError as error:
        first = error.errors()[0]
        cause = first.get("ctx", {}).get("error")
        if isinstance(cause, RequestError):
            raise cause from None
        name = str(first["loc"][0])
        raise RequestError(f"{name}: {first['msg']}", param=name) from None


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
