"""A request of the Responses API as one of chat, and errors about the latter as ones of the former.

Everything about the turn itself (sampling, thinking, tools, forms) is chat's (server/turn.py). Here
it gets chat's names, and an error gets back the name that its sender knows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from mimo_engine.errors import ContextLengthError, RequestError
from mimo_engine.server.chat_schemas import ChatRequest, chat_request
from mimo_engine.server.errors import CodedError
from mimo_engine.server.responses.conversation import Conversation
from mimo_engine.server.responses.schemas import ResponsesRequest
from mimo_engine.server.schemas import SharedFields

__all__ = ["as_chat_request", "in_terms_of_responses"]

_SAME = (
    *SharedFields.model_fields,
    *("parallel_tool_calls", "max_tool_calls"),
    *("chat_template_kwargs", "enable_thinking", "thinking_token_budget"),
)
"""Fields that chat has under the same name."""

_NAMES = {
    "max_tokens": "max_output_tokens",
    "messages": "input",
    "prompt": "input",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
}
"""Chat's fields by the ones that they are made of here."""

_WORDS = re.compile(
    r"(?P<format>\bresponse_format(\.json_schema)?\b)"
    r"|(?P<name>\b(max_tokens|reasoning_effort)\b)"
    r"|(?P<tool>\btools\[\d+\])\.function\b"
)


def as_chat_request(body: ResponsesRequest, conversation: Conversation) -> ChatRequest:
    """RequestError, in the terms of `body`: what this server cannot do."""
    tools = _tools(body.tools or [])
    fields = {
        **{name: getattr(body, name) for name in _SAME},
        "messages": conversation.messages,
        "tools": tools or None,
        "tool_choice": _choice(body.tool_choice),
        "response_format": _format(body.text and body.text.format),
        "reasoning_effort": body.reasoning and body.reasoning.effort,
        "max_tokens": body.max_output_tokens,
    }
    with in_terms_of_responses(conversation):
        return chat_request(fields)


@contextmanager
def in_terms_of_responses(conversation: Conversation) -> Iterator[None]:
    """RequestErrors about the chat request are about the fields and items that the client sent."""
    try:
        yield
    except CodedError:
        raise
    except RequestError as error:
        kind = ContextLengthError if isinstance(error, ContextLengthError) else RequestError
        param = error.param and _NAMES.get(error.param, _spelled(error.param, conversation))
        raise kind(_spelled(str(error), conversation), param=param) from error


def _spelled(text: str, conversation: Conversation) -> str:
    def word(match: re.Match[str]) -> str:
        return match["tool"] or (match["format"] and "text.format") or _NAMES[match["name"]]

    return _WORDS.sub(word, conversation.spelled(text))


def _tools(tools: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """In chat's form. `strict` is left out: every SDK sends it, templates would show it to the
    model, and it is no different here (a call that is demanded is valid, others are not held)."""
    return [_tool(tool, f"tools[{i}]") for i, tool in enumerate(tools)]


def _tool(tool: Mapping[str, Any], where: str) -> dict[str, Any]:
    if tool.get("type") != "function":
        raise RequestError(
            f"{where}.type is {tool.get('type')!r}: this server runs no tools of its own; only "
            "function is served",
            param=f"{where}.type",
        )
    known = ("type", "name", "description", "parameters", "strict")
    for key, value in tool.items():
        if key in known or value is None:
            continue
        hint = "; name, description and parameters stand beside type" if key == "function" else ""
        raise RequestError(f"{where} has the key {key!r}, which is not served{hint}", param=where)
    function = {key: tool[key] for key in known[1:4] if tool.get(key) is not None}
    return {"type": "function", "function": function}


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    """In chat's form."""
    match choice:
        case None | "none" | "auto" | "required":
            return choice
        case {"type": "function", "name": str() as name, **others} if not others:
            return {"type": "function", "function": {"name": name}}
    raise RequestError(
        'tool_choice must be none, auto, required or {"type": "function", "name": "a tool"}',
        param="tool_choice",
    )


def _format(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given.get("type") != "json_schema":
        return None if given is None else dict(given)
    inner = {key: value for key, value in given.items() if key != "type"}
    return {"type": "json_schema", "json_schema": inner}
