"""A request of the Messages API as one for chat, which turn.py serves.

What must hold: an answer that is sent back gives the prompt that it was generated after, so that
the prefix cache has it; and errors name places as Anthropic's clients know them, though messages of
chat are others: system prompt and results of tools are messages of their own there.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

from mimo_engine.errors import RequestError
from mimo_engine.server.anthropic.blocks import (
    Base64Source,
    Block,
    ContentSource,
    DocumentBlock,
    MediaBlock,
    RedactedThinkingBlock,
    SearchResultBlock,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)
from mimo_engine.server.anthropic.objects import HIDDEN
from mimo_engine.server.anthropic.schemas import (
    CountTokensRequest,
    EnabledThinking,
    MessagesRequest,
    Tool,
    ToolChoice,
)
from mimo_engine.server.chat_schemas import ChatRequest, chat_request
from mimo_engine.server.sealed_thoughts import unsealed

__all__ = ["convert", "own_names"]

Part = dict[str, Any]
"""A content part of chat."""

B = TypeVar("B")

# Claude Code's account of itself, the first line of its system prompt. It differs from request to
# request, so that no prefix would ever be found again.
_BILLING = re.compile(r"\Ax-anthropic-billing-header:[^\n]*\n?")

_PLACE = re.compile(r"messages\[\d+\]\.content\[\d+\]")
_NAMES = {
    " function has invalid 'parameters' schema": " has an invalid input_schema",
    "response_format": "output_config.format",
    ".function.name": ".name",
}
"""What chat calls things, and what this API does."""


@contextmanager
def own_names(places: Mapping[str, str]) -> Iterator[None]:
    """RequestErrors about a chat request are said in the words of the original, whose `places` are
    those of `convert`."""
    try:
        yield
    except RequestError as error:
        message = _PLACE.sub(lambda match: places.get(match[0], match[0]), str(error))
        for name, own in _NAMES.items():
            message = message.replace(name, own)
        error.args = (message,)
        raise


def convert(body: CountTokensRequest) -> tuple[ChatRequest, Mapping[str, str]]:
    """A request for chat, and where its media stand in the original one. RequestError: blocks that
    cannot stand where they do."""
    conversation = _Conversation()
    if body.system is not None:
        conversation.add_system(body.system)
    for role, run in itertools.groupby(enumerate(body.messages), lambda one: one[1].role):
        conversation.add(role, _joined(run))
    is_open = body.messages[-1].role == "assistant"
    conversation.finish()
    if is_open:
        _check_open_end(body, conversation.messages[-1])
    fields: dict[str, Any] = {
        "model": body.model,
        "messages": conversation.messages,
        "continue_final_message": is_open,
        "enable_thinking": body.thinks,
        "thinking_token_budget": body.thinking_budget,
        "tools": [_tool(tool) for tool in body.tools or []],
        **_choice(body.tool_choice),
    }
    if body.output_config is not None and body.output_config.format is not None:
        schema = {"name": "answer", "schema": body.output_config.format.schema_}
        fields["response_format"] = {"type": "json_schema", "json_schema": schema}
    if isinstance(body, MessagesRequest):
        fields |= {
            name: getattr(body, name) for name in ("max_tokens", "temperature", "top_p", "top_k")
        }
        fields["stop"] = body.stop_sequences
    with own_names(conversation.places):
        return chat_request(fields), conversation.places


def _check_open_end(body: CountTokensRequest, last: Mapping[str, Any]) -> None:
    """The template closes the thought of a message that is to be continued: none comes any more."""
    if isinstance(body.thinking, EnabledThinking) and not last["reasoning_content"]:
        raise RequestError(
            f"messages.{len(body.messages) - 1}: an answer that the request has begun goes on "
            "without a thought: disable thinking, or begin the message with its thinking block"
        )


def _tool(tool: Tool) -> dict[str, Any]:
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.input_schema,
        "strict": tool.strict,
        "input_examples": tool.input_examples,
    }
    given = {key: value for key, value in function.items() if value is not None}
    return {"type": "function", "function": given}


def _choice(choice: ToolChoice | None) -> dict[str, Any]:
    if choice is None:
        return {}
    if choice.type == "tool":
        chosen: Any = {"type": "function", "function": {"name": choice.name}}
    else:
        chosen = "required" if choice.type == "any" else choice.type
    parallel = False if choice.disable_parallel_tool_use else None
    return {"tool_choice": chosen, "parallel_tool_calls": parallel}


def _joined(run: Iterable[tuple[int, Any]]) -> list[tuple[str, Block]]:
    """The blocks of consecutive messages of one role, which are one turn, with their places. Texts
    of two messages stand on lines of their own."""
    blocks: list[tuple[str, Block]] = []
    for i, message in run:
        new = [(f"messages.{i}.content.{j}", block) for j, block in enumerate(message.content)]
        if new and blocks and all(isinstance(one[1], TextBlock) for one in (blocks[-1], new[0])):
            blocks.append((new[0][0], TextBlock(type="text", text="\n")))
        blocks += new
    return blocks


class _Conversation:
    """The messages of the chat request while they grow."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.places: dict[str, str] = {}
        self._calls: dict[str, str] = {}
        """The places of calls without a result, by id."""

    def add_system(self, blocks: Sequence[TextBlock]) -> None:
        texts = [_BILLING.sub("", block.text) for block in blocks]
        content = "\n".join(text for text in texts if text)
        self.messages.append({"role": "system", "content": content})

    def add(self, role: str, blocks: Sequence[tuple[str, Block]]) -> None:
        if role == "user":
            self._add_user(blocks)
            return
        self.finish()
        if role == "system":
            allowed = (TextBlock,)
            self.add_system([block for _, block in _only(blocks, allowed, role)])
        else:
            self._add_assistant(blocks)

    def finish(self) -> None:
        """RequestError: a call whose results cannot come any more."""
        if self._calls:
            place = next(iter(self._calls.values()))
            raise RequestError(
                f"{place}: a message with tool_use blocks must be followed by a user's, with a "
                "tool_result for each of them"
            )

    def _add_assistant(self, blocks: Sequence[tuple[str, Block]]) -> None:
        allowed = (TextBlock, ThinkingBlock, RedactedThinkingBlock, ToolUseBlock)
        thoughts, parts, calls = [], [], []
        for place, block in _only(blocks, allowed, "assistant"):
            match block:
                case ThinkingBlock():
                    thoughts.append(_thought(block, place))
                case ToolUseBlock(id=id_, name=name, input=arguments):
                    if id_ in self._calls:
                        raise RequestError(f"{place}.id: {id_!r:.80} is the id of another call")
                    self._calls[id_] = place
                    function = {"name": name, "arguments": arguments}
                    calls.append({"id": id_, "type": "function", "function": function})
                case TextBlock(text=text):
                    parts.append((place, _text(text)))
        # "" too: a text that quotes the tags of thinking is no thought.
        self._add("assistant", parts, reasoning_content="".join(thoughts), tool_calls=calls)

    def _add_user(self, blocks: Sequence[tuple[str, Block]]) -> None:
        results = list(itertools.takewhile(lambda one: one[1].type == "tool_result", blocks))
        for place, block in results:
            assert isinstance(block, ToolResultBlock)
            if self._calls.pop(block.tool_use_id, None) is None:
                raise RequestError(
                    f"{place}.tool_use_id: {block.tool_use_id!r:.80} is no tool_use of the message "
                    "before, or has a result already"
                )
            self._add("tool", _result_parts(block, place), tool_call_id=block.tool_use_id)
        self.finish()
        allowed = (TextBlock, MediaBlock, DocumentBlock, SearchResultBlock)
        rest = _only(blocks[len(results) :], allowed, "user")
        parts = [part for place, block in rest for part in _parts(block, place)]
        if parts or not results:
            self._add("user", parts)

    def _add(self, role: str, parts: Sequence[tuple[str, Part]], **fields: Any) -> None:
        content: Any = [part for _, part in parts]
        if all(part["type"] == "text" for part in content):
            # Not every template takes lists.
            content = (" " if role == "tool" else "").join(part["text"] for part in content)
        for j, (place, _) in enumerate(parts):
            self.places[f"messages[{len(self.messages)}].content[{j}]"] = place
        given = {key: value for key, value in fields.items() if value != []}
        self.messages.append({"role": role, "content": content, **given})


def _only(
    blocks: Iterable[tuple[str, Block]], allowed: tuple[type[B], ...], role: str
) -> Iterator[tuple[str, B]]:
    for place, block in blocks:
        if isinstance(block, ToolResultBlock) and role == "user":
            raise RequestError(f"{place}: tool_result blocks come before all others of a message")
        if not isinstance(block, allowed):
            raise RequestError(f"{place}: a {block.type} block cannot stand in a {role} message")
        yield place, cast("B", block)


def _thought(block: ThinkingBlock, place: str) -> str:
    try:
        return block.thinking or unsealed(block.signature or "", HIDDEN) or ""
    except ValueError as error:
        raise RequestError(f"{place}.signature: the signature is not as it was sent") from error


def _text(text: str) -> Part:
    return {"type": "text", "text": text}


def _result_parts(block: ToolResultBlock, place: str) -> list[tuple[str, Part]]:
    """A template shows no flag, so that the text has to say that it is an error."""
    parts = [
        part
        for k, inner in enumerate(block.content or [])
        for part in _parts(inner, f"{place}.content.{k}")
    ]
    if not block.is_error:
        return parts
    if parts and parts[0][1]["type"] == "text":
        return [(parts[0][0], _text("Error: " + parts[0][1]["text"])), *parts[1:]]
    return [(place, _text("Error: ")), *parts]


def _parts(block: Any, place: str) -> list[tuple[str, Part]]:
    match block:
        case TextBlock(text=text):
            return [(place, _text(text))]
        case MediaBlock(type=kind, source=source, options=options):
            if kind in options:
                raise RequestError(f"{place}.{kind}: source has its place")
            if isinstance(source, Base64Source):
                url = f"data:{source.media_type};base64,{source.data}"
            else:
                url = source.url
            return [(place, {"type": kind, kind: {"url": url}, **options})]
        case DocumentBlock(title=title, context=context, source=source):
            if isinstance(source, ContentSource):
                inner = [
                    part
                    for k, one in enumerate(source.content)
                    for part in _parts(one, f"{place}.source.content.{k}")
                ]
            else:
                inner = [(place, _text(source.data))]
            return _tagged("document", {"title": title, "context": context}, inner, place)
        case SearchResultBlock(title=title, source=source, content=content):
            inner = [(place, _text("\n".join(one.text for one in content)))]
            return _tagged("search_result", {"title": title, "source": source}, inner, place)
    raise AssertionError(block)


def _tagged(
    name: str, facts: Mapping[str, str | None], inner: Sequence[tuple[str, Part]], place: str
) -> list[tuple[str, Part]]:
    """As text, in the style of the template's own blocks."""
    lines = [f"<{key}>{value}</{key}>\n" for key, value in facts.items() if value is not None]
    begin, end = f"<{name}>\n" + "".join(lines), f"\n</{name}>\n"
    return [(place, _text(begin)), *inner, (place, _text(end))]
