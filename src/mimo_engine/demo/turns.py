"""Turns of a conversation: how the text tasks write them, and how they read a model's.

Reading never raises: a model's turn may be anything that parses as JSON. Where there is nothing to
read the result is one that no task takes for right.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimo_engine.demo.task import Message

__all__ = ["Call", "assistant", "content_of", "only_call", "parsed", "same_json", "user"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """A tool's name and the arguments it gets."""

    name: str
    arguments: Mapping[str, Any]


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(content: str, *, reasoning: str = "", call: Call | None = None) -> Message:
    calls = [{"name": call.name, "arguments": dict(call.arguments)}] if call else []
    return {
        "role": "assistant",
        "content": content,
        "reasoning_content": reasoning,
        "tool_calls": [{"type": "function", "function": function} for function in calls],
    }


def content_of(answer: Message) -> str:
    """The text without the white space around it; "" where the turn calls a tool or has none."""
    content = answer.get("content")
    return content.strip() if isinstance(content, str) and not answer.get("tool_calls") else ""


def only_call(answer: Message) -> Call | None:
    """The call of a turn that is one call and nothing else, its arguments parsed."""
    calls, content = answer.get("tool_calls"), answer.get("content")
    if content is not None and (not isinstance(content, str) or content.strip()):
        return None
    if not isinstance(calls, list) or len(calls) != 1 or not isinstance(calls[0], Mapping):
        return None
    function = calls[0].get("function")
    if not isinstance(function, Mapping):
        return None
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        arguments = parsed(arguments)
    if not isinstance(name, str) or not isinstance(arguments, Mapping):
        return None
    return Call(name=name, arguments=arguments)


def parsed(text: str) -> Any:
    """The JSON value of `text`; None also where it is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def same_json(left: Any, right: Any) -> bool:
    """Whether two JSON values are equal: true is not 1, and 2.0 is 2."""
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(
            same_json(value, right[name]) for name, value in left.items()
        )
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_json, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and left == right
