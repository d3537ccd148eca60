"""What a server is asked and what it says, whichever library carries it.

A reply is read here and nowhere else, so that an answer which is odd, cut or empty is a value like
any other: it is scored, and never ends a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

__all__ = [
    "Endpoint",
    "Failure",
    "Reply",
    "Request",
    "chat_request",
    "completion_request",
    "read_reply",
]

Endpoint = Literal["/v1/completions", "/v1/chat/completions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One question on the wire."""

    path: Endpoint
    body: Mapping[str, Any]
    """Without the model's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """One answer, whole or cut."""

    message: Mapping[str, Any]
    """Of chat, as the server sent it. A completion is {"content": its text}."""
    finish_reason: str | None
    num_prompt_tokens: int | None = None
    num_completion_tokens: int | None = None
    """None: the server does not count."""

    @property
    def text(self) -> str:
        """The answer without its thought; "" where there is none, as when the thought was cut.

        A server without a reasoning parser leaves the thought and its tags in the content.
        """
        content = self.message.get("content")
        if not isinstance(content, str):
            return ""
        _, end, answer = content.rpartition("</think>")
        if end:
            return answer.strip()
        is_cut = content.lstrip().startswith("<think>")
        return "" if is_cut else content.strip()

    @property
    def is_cut(self) -> bool:
        """Ended by max_tokens or by the context, not by the model."""
        return self.finish_reason == "length"


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """No answer."""

    reason: str
    """One line."""


def completion_request(prompt: str, *, max_tokens: int, stop: Sequence[str]) -> Request:
    """Greedy, of raw text: no template, so no thinking."""
    body = {"prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "stop": list(stop)}
    return Request(path="/v1/completions", body=body)


def chat_request(
    messages: Sequence[Mapping[str, Any]],
    *,
    max_tokens: int,
    thinks: bool,
    tools: Sequence[Mapping[str, Any]] = (),
) -> Request:
    """Greedy. Whether the model thinks is always said, since servers differ in what they assume."""
    body: dict[str, Any] = {
        "messages": list(messages),
        "temperature": 0,
        "top_p": 1,
        "max_tokens": max_tokens,
        "chat_template_kwargs": {"enable_thinking": thinks},
    }
    if tools:
        body["tools"] = list(tools)
    return Request(path="/v1/chat/completions", body=body)


def read_reply(path: Endpoint, payload: Any) -> Reply | Failure:
    """The first choice of a successful answer's JSON."""
    try:
        choice = payload["choices"][0]
        message = (
            choice["message"] if path == "/v1/chat/completions" else {"content": choice["text"]}
        )
        finish_reason = choice.get("finish_reason")
    except (AttributeError, IndexError, KeyError, TypeError):
        return Failure(reason="the server's answer has no choices as the OpenAI API has them")
    if not isinstance(message, Mapping):
        return Failure(reason="the server's answer has a message that is no object")
    usage = payload.get("usage")
    counts = usage if isinstance(usage, Mapping) else {}
    return Reply(
        message=message,
        finish_reason=finish_reason,
        num_prompt_tokens=counts.get("prompt_tokens"),
        num_completion_tokens=counts.get("completion_tokens"),
    )
