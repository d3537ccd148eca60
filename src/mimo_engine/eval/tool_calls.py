"""Tool calls: whether the answer makes exactly the calls that are expected.

Names and arguments must be equal as JSON values: 1 and 1.0 are one number, true is none, order
counts in lists and not in objects. Calls of one answer have no order among them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from mimo_engine.demo.turns import same_json
from mimo_engine.eval.api import Reply, chat_request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Options, Question
from mimo_engine.eval.rows import Row

__all__ = ["tool_calls"]

ANSWER_TOKENS = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class _Call:
    name: str
    arguments: Any


def tool_calls(options: Options) -> Evaluation:
    """Rows with `messages`, `tools` as the API takes them, and `calls` (name, arguments)."""
    rows = options.rows(hub_files="*test*", columns=("messages", "tools", "calls"))
    max_tokens = options.tokens_for(ANSWER_TOKENS)
    return Evaluation(
        metric="accuracy",
        items=[
            _item(index, row, max_tokens, options.thinks)
            for index, row in enumerate(rows[: options.limit])
        ],
        settings={"max_tokens": max_tokens, "thinking": options.thinks},
    )


def _item(index: int, row: Row, max_tokens: int, thinks: bool) -> Item:
    messages, tools = row.list_of_objects("messages"), row.list_of_objects("tools")
    calls = row.list_of_objects("calls")
    for call in calls:
        if not isinstance(call.get("name"), str) or not isinstance(call.get("arguments"), Mapping):
            raise row.error("each of calls must have a name and an object of arguments")
    expected = [_Call(name=call["name"], arguments=call["arguments"]) for call in calls]

    def pose() -> Question:
        return Question(
            request=chat_request(messages, max_tokens=max_tokens, thinks=thinks, tools=tools),
            expected=calls,
            grade=partial(_grade, expected),
        )

    return Item(id=str(index), group="tools", pose=pose)


def _grade(expected: Sequence[_Call], reply: Reply) -> Grade:
    made = _calls_of(reply)
    if not made and not reply.text:
        # Where no call is expected, one still has to say something.
        return Grade(count=0, answer=[], note="empty")
    answer = [{"name": call.name, "arguments": call.arguments} for call in made]
    note = _difference(expected, made)
    return Grade(count=int(not note), answer=answer, note=note)


def _calls_of(reply: Reply) -> list[_Call]:
    """What the answer calls; arguments that are no JSON stay text, which equals no object."""
    calls = reply.message.get("tool_calls") or []
    found = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function") if isinstance(call, Mapping) else None
        function = function if isinstance(function, Mapping) else {}
        arguments = function.get("arguments")
        try:
            parsed = json.loads(arguments) if isinstance(arguments, str) else arguments
        except (ValueError, RecursionError):
            parsed = arguments
        found.append(_Call(name=str(function.get("name")), arguments=parsed))
    return found


def _difference(expected: Sequence[_Call], made: Sequence[_Call]) -> str:
    """What is wrong first: the number of calls, a name, or arguments. "": nothing."""
    if len(expected) != len(made):
        return "too few calls" if len(made) < len(expected) else "too many calls"
    if Counter(call.name for call in expected) != Counter(call.name for call in made):
        return "wrong name"
    left = list(made)
    for call in expected:
        same = next((other for other in left if _is_same(call, other)), None)
        if same is None:
            return "wrong arguments"
        left = [other for other in left if other is not same]
    return ""


def _is_same(call: _Call, other: _Call) -> bool:
    return call.name == other.name and same_json(call.arguments, other.arguments)
