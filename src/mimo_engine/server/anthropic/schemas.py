"""Requests of Anthropic's Messages API: names, types and bounds.

As in server/schemas.py no field is ignored in silence: what would change the answer and is not
served is refused by name, and what is taken without effect is listed here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from mimo_engine.config.sampling import MAX_TOP_K
from mimo_engine.errors import RequestError
from mimo_engine.server.anthropic.blocks import Content, TextContent
from mimo_engine.server.errors import CodedError
from mimo_engine.server.schemas import Strict, check_sizes

__all__ = ["CountTokensRequest", "Message", "MessagesRequest"]


class Message(Strict):
    role: Literal["user", "assistant", "system"]
    content: Content


class _ThinkingOn(Strict):
    display: Literal["summarized", "omitted"] | None = None
    """omitted: the thought is in the signature alone."""


class EnabledThinking(_ThinkingOn):
    type: Literal["enabled"]
    budget_tokens: int = Field(ge=1024)


class AdaptiveThinking(_ThinkingOn):
    """The model decides whether and how long."""

    type: Literal["adaptive"]


class DisabledThinking(Strict):
    type: Literal["disabled"]


Thinking = Annotated[
    EnabledThinking | AdaptiveThinking | DisabledThinking, Field(discriminator="type")
]


def _custom_alone(tool: Any) -> Any:
    kind = tool.get("type") if isinstance(tool, dict) else None
    if kind not in (None, "custom"):
        raise PydanticCustomError(
            "server_tool",
            "{kind} is a tool that Anthropic defines, which this server does not have: describe it "
            "as a tool of your own, with name, description and input_schema",
            {"kind": str(kind)},
        )
    return tool


class Tool(Strict):
    type: Literal["custom"] | None = None
    name: str
    description: str | None = None
    input_schema: dict[str, Any]
    input_examples: list[dict[str, Any]] | None = None
    """Shown to the model as they are."""
    strict: bool | None = None
    """Arguments are held to the schema where a call is demanded."""
    cache_control: dict[str, Any] | None = None
    eager_input_streaming: bool | None = None
    """Of no effect: arguments always stream while they are written."""
    defer_loading: Literal[False] | None = None
    allowed_callers: list[Literal["direct"]] | None = None


_CustomTool = Annotated[Tool, BeforeValidator(_custom_alone)]


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _check_name(self) -> ToolChoice:
        if (self.name is not None) != (self.type == "tool"):
            raise PydanticCustomError("name", "name goes with the type tool, and with it alone")
        return self

    @property
    def must_call(self) -> bool:
        return self.type in ("any", "tool")


class _JsonFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    """Of no effect: the model knows no degrees."""
    format: _JsonFormat | None = None


class _ClearThinking(Strict):
    """All thoughts are kept anyway; to keep fewer is not served."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class ContextManagement(Strict):
    edits: list[_ClearThinking] = Field(default_factory=list)


def _absent(value: Any) -> None:
    if value is not None and value != []:
        raise PydanticCustomError("not_served", "this server does not have it: remove it")


Absent = Annotated[None, BeforeValidator(_absent)]


def _no_thread(value: Any) -> None:
    """By this code Anthropic's clients know to send whole conversations: their tool runner, which
    asks for a thread by itself, then goes on without one."""
    if value is not None:
        raise CodedError(
            "thread: this server holds no conversations: send all messages, without a thread",
            param="thread",
            code="thread_unsupported_request",
        )


class CountTokensRequest(Strict):
    """POST /v1/messages/count_tokens: what decides the text that the model reads."""

    model: str
    messages: list[Message] = Field(min_length=1)
    system: TextContent | None = None
    tools: list[_CustomTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    context_management: ContextManagement | None = None

    # Of no effect: accounts, speed and caches, which concern no token of the answer.
    cache_control: dict[str, Any] | None = None
    diagnostics: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    speed: Literal["standard", "fast"] | None = None
    user_profile_id: str | None = None

    # Not served.
    container: Absent = None
    inference_geo: Absent = None
    mcp_servers: Absent = None
    thread: Annotated[None, BeforeValidator(_no_thread)] = None

    @model_validator(mode="before")
    @classmethod
    def _check_sizes(cls, data: Any) -> Any:
        if isinstance(data, dict):
            check_sizes(data)
        return data

    @model_validator(mode="after")
    def _check_tool_choice(self) -> CountTokensRequest:
        choice = self.tool_choice
        if choice is None or not choice.must_call:
            return self
        names = [tool.name for tool in self.tools or []]
        if not names or (choice.name is not None and choice.name not in names):
            name = "" if choice.name is None else f" named {choice.name!r:.80}"
            raise RequestError(f"tool_choice: the request has no tool{name} to be called")
        if self.output_config is not None and self.output_config.format is not None:
            raise RequestError(
                "tool_choice demands a call, and output_config.format an answer in JSON: give one "
                "of them"
            )
        return self

    @property
    def thinks(self) -> bool:
        """Off unless asked for, as in Anthropic's API."""
        return isinstance(self.thinking, EnabledThinking | AdaptiveThinking)

    @property
    def thinking_budget(self) -> int | None:
        return self.thinking.budget_tokens if isinstance(self.thinking, EnabledThinking) else None

    @property
    def shows_thinking(self) -> bool:
        return not (isinstance(self.thinking, _ThinkingOn) and self.thinking.display == "omitted")


class MessagesRequest(CountTokensRequest):
    """POST /v1/messages."""

    max_tokens: int = Field(ge=1)
    stop_sequences: list[str] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(default=None, le=MAX_TOP_K)

    @model_validator(mode="after")
    def _check_budget(self) -> MessagesRequest:
        if self.thinking_budget is not None and self.thinking_budget >= self.max_tokens:
            raise RequestError(
                f"max_tokens is {self.max_tokens}: it must be greater than thinking.budget_tokens, "
                f"{self.thinking_budget}"
            )
        return self
