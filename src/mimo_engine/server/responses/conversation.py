"""Items of the Responses API to messages of chat.

A turn of the assistant is several items: its thought, its text, its calls. They are one message of
chat again, so that the model reads what it would read there, byte for byte. What must hold: nothing
in an item is skipped in silence, and of every message it is known which items made it, so that an
error about a message can name the item (`Conversation.spelled`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from mimo_engine.errors import RequestError
from mimo_engine.server.responses.objects import SEALED
from mimo_engine.server.sealed_thoughts import unsealed

__all__ = ["Conversation", "Item", "kind_of"]

Item = Mapping[str, Any]

_ROLES = {"user": "user", "system": "system", "developer": "system", "assistant": "assistant"}
"""The model knows no developers: OpenAI's name for who speaks in system messages."""

_PLACE = re.compile(
    r"messages\[(?P<message>\d+)\](?:\.tool_calls\[(?P<call>\d+)\](?:\.function)?)?"
    r"(?P<result>\.tool_call_id)?"
)


@dataclass(frozen=True, slots=True)
class _Origin:
    """Which items a message comes from."""

    place: str
    calls: list[str] = field(default_factory=list)


class Conversation:
    """The messages of a conversation while its items are added, oldest first."""

    def __init__(self, instructions: str | None) -> None:
        self.messages: list[dict[str, Any]] = []
        self._origins: list[_Origin] = []
        self._cut_calls: set[str] = set()
        self._last_kind: str | None = None
        """Of the open turn of the assistant; None: there is none."""
        if instructions is not None:
            self._begin({"role": "system", "content": instructions}, "instructions")

    def add(self, items: Iterable[Item], place: str) -> None:
        """`items` stand in `place` of the request. RequestError: an item that is not well-formed,
        or not served; it is named."""
        for i, item in enumerate(items):
            kind = kind_of(item)
            where = f"{place}[{i}]"
            match kind:
                case "message":
                    self._add_message(item, where)
                case "reasoning":
                    self._add_reasoning(item, where)
                case "function_call":
                    self._add_call(item, where)
                case "function_call_output":
                    self._add_result(item, where)
                case _:
                    raise RequestError(
                        f"{where}.type is {kind!r:.80}: this server takes message, reasoning, "
                        "function_call, function_call_output and item_reference",
                        param=where,
                    )

    def spelled(self, text: str) -> str:
        """`text` about messages with the places of items."""

        def place(match: re.Match[str]) -> str:
            number = int(match["message"])
            if number >= len(self._origins):
                return match[0]
            origin = self._origins[number]
            if match["call"] is not None and int(match["call"]) < len(origin.calls):
                return origin.calls[int(match["call"])]
            return origin.place + (".call_id" if match["result"] else "")

        return _PLACE.sub(place, text)

    def _begin(self, message: dict[str, Any], place: str, kind: str | None = None) -> None:
        """`kind`: of the item that opens a turn of the assistant."""
        self.messages.append(message)
        self._origins.append(_Origin(place))
        self._last_kind = kind

    def _go_on(self, kind: str, place: str, *, after: Sequence[str]) -> dict[str, Any]:
        """The assistant's message that an item of `kind` belongs to: the open one, when its last
        item is one of `after`, or a new one."""
        if self._last_kind not in after:
            self._begin({"role": "assistant", "content": ""}, place)
        self._last_kind = kind
        return self.messages[-1]

    def _add_message(self, item: Item, where: str) -> None:
        _check_keys(item, where, ("type", "id", "status", "role", "content", "phase"))
        role = item.get("role")
        if not isinstance(role, str) or role not in _ROLES:
            raise RequestError(
                f"{where}.role is {role!r}: choose of {', '.join(_ROLES)}", param=f"{where}.role"
            )
        if role == "assistant":
            text = _text(item.get("content"), f"{where}.content", _ASSISTANT_TEXTS)
            # Two messages in a row are two turns: no answer of the model has them.
            message = self._go_on("message", where, after=("reasoning", "function_call"))
            message["content"] += text
        else:
            content = _content(item.get("content"), f"{where}.content")
            self._begin({"role": _ROLES[role], "content": content}, where)

    def _add_reasoning(self, item: Item, where: str) -> None:
        _check_keys(
            item, where, ("type", "id", "status", "summary", "content", "encrypted_content")
        )
        message = self._go_on("reasoning", where, after=("reasoning",))
        thought = _thought(item, where)
        message["reasoning_content"] = message.get("reasoning_content", "") + thought

    def _add_call(self, item: Item, where: str) -> None:
        known = ("type", "id", "status", "call_id", "name", "arguments")
        _check_keys(item, where, known)
        call_id, name, arguments = (
            _string(item, key, where) for key in ("call_id", "name", "arguments")
        )
        if item.get("status") == "incomplete":
            # The model did not finish it, so that nobody ran it: there was no call.
            self._cut_calls.add(call_id)
            return
        after = ("reasoning", "message", "function_call")
        message = self._go_on("function_call", where, after=after)
        function = {"name": name, "arguments": arguments}
        message.setdefault("tool_calls", []).append(
            {"id": call_id, "type": "function", "function": function}
        )
        self._origins[-1].calls.append(where)

    def _add_result(self, item: Item, where: str) -> None:
        known = ("type", "id", "status", "call_id", "output", "name")
        _check_keys(item, where, known)
        call_id = _string(item, "call_id", where)
        if call_id in self._cut_calls:
            raise RequestError(
                f"{where}: the call {call_id!r:.80} was cut (its status is incomplete), so that it "
                "has no result: leave this out, and let the model call again",
                param=where,
            )
        output = _content(item.get("output"), f"{where}.output")
        self._begin({"role": "tool", "tool_call_id": call_id, "content": output}, where)


def kind_of(item: Item) -> Any:
    """The type of an item, which a message may leave out, and a reference too."""
    kind = item.get("type")
    if kind is None:
        return "item_reference" if "role" not in item and "id" in item else "message"
    return kind


_ASSISTANT_TEXTS = ("output_text", "input_text", "refusal")


def _check_keys(item: Item, where: str, known: Sequence[str]) -> None:
    """null is as good as nothing."""
    for key, value in item.items():
        if key not in known and value is not None:
            raise RequestError(
                f"{where} has the key {key!r:.80}; it takes {', '.join(known)}", param=where
            )


def _string(item: Item, key: str, where: str) -> str:
    value = item.get(key)
    if not isinstance(value, str):
        raise RequestError(f"{where}.{key} must be a string", param=f"{where}.{key}")
    return value


def _parts(content: Any, where: str) -> list[Mapping[str, Any]]:
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise RequestError(f"{where} must be a string or a list of parts", param=where)
    return content


def _text(content: Any, where: str, kinds: Sequence[str]) -> str:
    """Parts of text alone, as one."""
    if isinstance(content, str):
        return content
    parts = _parts(content, where)
    return "".join(_text_of(part, f"{where}[{i}]", kinds) for i, part in enumerate(parts))


def _text_of(part: Mapping[str, Any], where: str, kinds: Sequence[str]) -> str:
    kind = part.get("type")
    if kind not in kinds:
        raise RequestError(
            f"{where}.type is {kind!r}: only {' and '.join(kinds)} can stand here", param=where
        )
    key = "refusal" if kind == "refusal" else "text"
    _check_keys(part, where, ("type", key, "annotations", "logprobs"))
    return _string(part, key, where)


def _content(content: Any, where: str) -> str | list[dict[str, Any]]:
    """Of a message that is not the assistant's, in chat's parts, each in its place."""
    if isinstance(content, str):
        return content
    return [_part(part, f"{where}[{i}]") for i, part in enumerate(_parts(content, where))]


def _part(part: Mapping[str, Any], where: str) -> dict[str, Any]:
    kind = part.get("type")
    if kind in ("input_text", "output_text"):
        return {"type": "text", "text": _text_of(part, where, (kind,))}
    # Options stay where they are: who reads the media knows them, and names those it does not.
    options = {
        key: value
        for key, value in part.items()
        if key not in ("type", "image_url", "video_url") and value is not None
    }
    match kind:
        case "input_image":
            if options.get("detail") == "original":
                options["detail"] = "high"
            url = _media_url(part, "image_url", where)
            return {"type": "image_url", "image_url": {"url": url}, **options}
        case "input_video":
            url = _media_url(part, "video_url", where)
            return {"type": "video_url", "video_url": {"url": url}, **options}
        case "input_audio":
            return {"type": "input_audio", **options}
    raise RequestError(
        f"{where}.type is {kind!r}: this server takes input_text, input_image, input_audio and "
        "input_video; send what a file says as one of these",
        param=where,
    )


def _media_url(part: Mapping[str, Any], key: str, where: str) -> str:
    if part.get("file_id") is not None:
        raise RequestError(
            f"{where}.file_id: no files are kept here; send a URL or a data URI as {key}",
            param=f"{where}.file_id",
        )
    return _string(part, key, where)


def _thought(item: Item, where: str) -> str:
    """Its text; where that was left out, what stands in for it; at last its summary."""
    if item.get("content"):
        return _text(item["content"], f"{where}.content", ("reasoning_text",))
    if item.get("encrypted_content"):
        return _unsealed(_string(item, "encrypted_content", where), f"{where}.encrypted_content")
    return _text(item.get("summary") or "", f"{where}.summary", ("summary_text",))


def _unsealed(text: str, where: str) -> str:
    with suppress(ValueError):
        if (thought := unsealed(text, SEALED)) is not None:
            return thought
    raise RequestError(
        f"{where} is not of this server: leave the item out, or send its content", param=where
    )
