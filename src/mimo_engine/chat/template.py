"""A conversation to the text that the model reads, by the checkpoint's own Jinja template.

The template is data from the checkpoint, so it runs in Jinja's immutable sandbox with a bound on
its loops. The environment is the one transformers gives a chat template (block trimming, loop
controls, `tojson` without HTML escapes, `raise_exception`, `strftime_now`): the same template makes
the same text here, byte for byte.

`normalise_messages` brings what OpenAI clients send into the form that templates of this family
expect (protocol.md 2.9). It is separate from rendering, because it is about requests and not about
templates.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from importlib import resources
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
import jinja2.sandbox

from mimo_engine.errors import CheckpointError, RequestError

__all__ = ["ChatTemplate", "family_template", "normalise_messages"]

Message = dict[str, Any]

_MAX_ARGUMENTS_CHARS = 2**22
"""Of a tool call in a request: more than a context holds."""
# Far above what a conversation needs (one step for each message, part, tool and argument).
_MAX_LOOP_STEPS = 2_000_000
_TICK = "_count_loop_step"

# What has a field of its own in a request, or belongs to the server.
_RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "chat_template", _TICK}
)

_MEDIA_TYPES = ("image", "image_url", "video", "video_url", "audio", "audio_url")
_THINKING_TYPES = ("thinking", "reasoning")

# From a private-use area: marks where the last message ends in the rendered text.
_CONTINUE_MARK = "\ue000continue\ue000"


def family_template() -> str:
    """The V2.5 template, written from the rules of the format; for checkpoints made here."""
    return (
        resources.files("mimo_engine.chat").joinpath("mimo_v2_5.jinja").read_text(encoding="utf-8")
    )


class ChatTemplate:
    """A compiled chat template. Thread-safe. CheckpointError: `source` is not a Jinja template.

    `special_tokens` are variables such as eos_token, which some templates use.
    """

    def __init__(self, source: str, *, special_tokens: Mapping[str, str] | None = None) -> None:
        environment = _environment()
        try:
            self._template = environment.from_string(_with_counted_loops(environment, source))
        except jinja2.TemplateError as error:
            raise CheckpointError(
                f"the chat template is not valid Jinja ({error}); "
                "pass another one with --chat-template"
            ) from error
        self._special_tokens = dict(special_tokens or {})

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Text of normalised `messages`. `template_kwargs` are variables of the template
        (enable_thinking, keep_all_reasoning, ...), as chat_template_kwargs of a request.

        `continue_final_message` leaves the last message, an assistant's, open at its end, and
        then there is no generation prompt. RequestError: the template refuses the messages.
        """
        if not messages:
            raise RequestError("Messages cannot be empty.", param="messages")
        template_kwargs = template_kwargs or {}
        reserved = sorted(_RESERVED.intersection(template_kwargs))
        if reserved:
            raise RequestError(
                f"chat_template_kwargs may not set {', '.join(reserved)}",
                param="chat_template_kwargs",
            )
        if continue_final_message:
            messages = _marked(messages)
        variables = {
            **self._special_tokens,
            **template_kwargs,
            "messages": messages,
            "tools": list(tools) if tools else None,
            "add_generation_prompt": add_generation_prompt and not continue_final_message,
            _TICK: _loop_counter(),
        }
        try:
            text = self._template.render(variables)
        except Exception as error:  # a template is a program: any of them may come
            reason = str(error) or type(error).__name__
            raise RequestError(
                f"the chat template cannot render these messages: {reason}", param="messages"
            ) from error
        return _cut_at_mark(text) if continue_final_message else text


def _environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _with_counted_loops(environment: jinja2.Environment, source: str) -> jinja2.nodes.Template:
    """The parsed template, each loop body beginning with a call that counts the step."""
    tree = environment.parse(source)
    for loop in tree.find_all(jinja2.nodes.For):
        counter = jinja2.nodes.Name(_TICK, "load", lineno=loop.lineno)
        call = jinja2.nodes.Call(counter, [], [], None, None, lineno=loop.lineno)
        loop.body.insert(0, jinja2.nodes.ExprStmt(call, lineno=loop.lineno))
    tree.set_environment(environment)
    return tree


def _loop_counter() -> Callable[[], None]:
    num_steps = 0

    def count() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps > _MAX_LOOP_STEPS:
            raise jinja2.TemplateError(f"it took more than {_MAX_LOOP_STEPS} loop steps")

    return count


def _marked(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """`messages` with the mark at the end of the last one's text."""
    last = messages[-1]
    if last.get("role") != "assistant" or last.get("tool_calls"):
        raise RequestError(
            "continue_final_message needs a last message of role assistant without tool calls",
            param="continue_final_message",
        )
    content = last.get("content")
    if isinstance(content, list):
        content = [*content, {"type": "text", "text": _CONTINUE_MARK}]
    else:
        content = (content or "") + _CONTINUE_MARK
    return [*messages[:-1], {**last, "content": content}]


def _cut_at_mark(text: str) -> str:
    if text.count(_CONTINUE_MARK) != 1:
        raise RequestError(
            "the chat template does not show the last message as it is, so it cannot be continued",
            param="continue_final_message",
        )
    return text[: text.index(_CONTINUE_MARK)]


def normalise_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Request messages as templates of this family expect them; the input is left as it was.

    A missing or null content is "". `input_audio` parts get the type `audio`. The parts of a tool
    message that has text alone are joined with single spaces, thinking parts of an assistant
    message become its reasoning_content, and `reasoning` is another name for that. Arguments of a
    tool call are an object. Results of tools come in the order of their calls, since templates of
    this family show no ids. RequestError names the message and the field that cannot be brought
    into this form.
    """
    normal = [_normalise(message, f"messages[{i}]") for i, message in enumerate(messages)]
    begin = 0
    for is_tool, run in itertools.groupby(normal, lambda message: message["role"] == "tool"):
        end = begin + len(list(run))
        if is_tool:
            before: Message = normal[begin - 1] if begin else {"role": "none"}
            # Of any other role they are nothing that was brought into form.
            calls = before.get("tool_calls", []) if before["role"] == "assistant" else []
            normal[begin:end] = _in_order_of_calls(normal[begin:end], calls, begin)
        begin = end
    return normal


def _in_order_of_calls(
    results: Sequence[Message], calls: Sequence[Message], begin: int
) -> list[Message]:
    """`results` (messages from `begin` on) by the ids of `calls`, the calls just before them.

    Without an id on each of them they are taken to be in order. RequestError: an id that no call
    has, two results for one call, or a result missing before another one.
    """
    ids = [call.get("id") for call in calls]
    answered = [result.get("tool_call_id") for result in results]
    for one in (*ids, *answered):
        if not isinstance(one, str | None):
            raise RequestError(f"the id of a tool call is a string, not {one!r}", param="messages")
    place = {one: i for i, one in enumerate(ids)}
    for i, one in enumerate(answered):
        if one is not None and one not in place and None not in place:
            raise RequestError(
                f"messages[{begin + i}].tool_call_id is {one!r}, which no tool call of the "
                "message before the results has",
                param="messages",
            )
    if None in place or None in answered or len(place) < len(ids):
        return list(results)
    result_of = dict(zip(answered, results, strict=True))
    if len(result_of) < len(results):
        raise RequestError(
            f"messages[{begin}] to [{begin + len(results) - 1}] hold two results of one tool call",
            param="messages",
        )
    missing = next((one for one in ids[: len(results)] if one not in result_of), None)
    if missing is not None:
        raise RequestError(
            f"the tool call {missing!r} has no result, and a later one has: templates show "
            "results by their order alone, so send one for each call",
            param="messages",
        )
    return [result_of[one] for one in ids[: len(results)]]


def _normalise(message: Mapping[str, Any], where: str) -> Message:
    role = message.get("role")
    if not isinstance(role, str):
        raise RequestError(f"{where}.role must be a string, not {role!r}", param="messages")
    content = _content(message.get("content"), f"{where}.content", role)
    if role == "tool" and isinstance(content, list):
        content = _joined(content)
    if role != "assistant":
        return {**message, "content": content}
    own = ("content", "reasoning", "reasoning_content", "tool_calls")
    result = {key: value for key, value in message.items() if key not in own}
    result["content"], thinking = _without_thinking(content)
    given = (message.get("reasoning_content"), message.get("reasoning"), thinking)
    reasoning = next((text for text in given if isinstance(text, str)), None)
    if reasoning is not None:
        result["reasoning_content"] = reasoning
    if message.get("tool_calls"):
        result["tool_calls"] = _tool_calls(message["tool_calls"], f"{where}.tool_calls")
    return result


def _content(content: Any, where: str, role: str) -> str | list[Message]:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        raise RequestError(f"{where} must be a string or a list of parts", param="messages")
    return [_part(part, f"{where}[{i}]", role) for i, part in enumerate(content)]


def _part(part: Any, where: str, role: str) -> Message:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and not isinstance(part.get("text"), str):
        raise RequestError(f"{where}.text must be a string", param="messages")
    if kind == "text" or kind in _MEDIA_TYPES or (kind in _THINKING_TYPES and role == "assistant"):
        return dict(part)
    if kind == "input_audio":
        return {**part, "type": "audio"}
    raise RequestError(
        f"{where} has the type {kind!r}; this model takes text, {', '.join(_MEDIA_TYPES)} and "
        "input_audio",
        param="messages",
    )


def _joined(parts: list[Message]) -> str | list[Message]:
    """As they are where there is more than text: a screenshot, say."""
    if any(part["type"] != "text" for part in parts):
        return parts
    return " ".join(part["text"] for part in parts)


def _without_thinking(content: str | list[Message]) -> tuple[str | list[Message], str | None]:
    """The content without its thinking parts, and their text, None when there are none."""
    if isinstance(content, str):
        return content, None
    shown = [part for part in content if part["type"] not in _THINKING_TYPES]
    hidden = [part for part in content if part["type"] in _THINKING_TYPES]
    texts = [str(part.get(part["type"]) or part.get("text") or "") for part in hidden]
    return shown, "".join(texts) if hidden else None


def _tool_calls(calls: Any, where: str) -> list[Message]:
    if not isinstance(calls, Sequence) or isinstance(calls, str):
        raise RequestError(f"{where} must be a list", param="messages")
    return [_tool_call(call, f"{where}[{i}]") for i, call in enumerate(calls)]


def _tool_call(call: Any, where: str) -> Message:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise RequestError(f"{where}.function must be an object with a name", param="messages")
    arguments = function.get("arguments")
    # Some clients send nothing for a call without parameters.
    if arguments is None or arguments == "":
        arguments = {}
    if isinstance(arguments, str):
        if len(arguments) > _MAX_ARGUMENTS_CHARS:
            raise RequestError(
                f"{where}.function.arguments has {len(arguments)} characters; at most "
                f"{_MAX_ARGUMENTS_CHARS} are taken",
                param="messages",
            )
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                f"{where}.function.arguments is not valid JSON: {error}; leave out a call that was "
                "cut",
                param="messages",
            ) from error
    if not isinstance(arguments, Mapping):
        raise RequestError(
            f"{where}.function.arguments must be a JSON object, not {type(arguments).__name__}",
            param="messages",
        )
    return {**call, "function": {**function, "arguments": dict(arguments)}}
