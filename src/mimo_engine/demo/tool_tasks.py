"""Calling one of a few tools, and saying what a tool has answered."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimo_engine.demo.splits import draw_in
from mimo_engine.demo.task import Example, Message, Split, Task
from mimo_engine.demo.tool_specs import TOOLS, offer
from mimo_engine.demo.turns import Call, assistant, content_of, only_call, same_json, user
from mimo_engine.demo.words import CITIES, PRODUCTS

__all__ = ["Request", "ToolCall", "ToolQuestion", "ToolResult", "WantedCall"]

_NUM_TOOLS = (2, 3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A tool and what it gets, in the words of TOOLS; the conversation has its own names."""

    tool: str
    values: Mapping[str, Any]

    @property
    def key(self) -> str:
        return f"{self.tool} {json.dumps(self.values, sort_keys=True)}"


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedCall:
    """The call that answers a request in the names of its conversation."""

    request: Request
    call: Call

    @property
    def key(self) -> str:
        return self.request.key


class ToolCall(Task):
    """The commonest held-out call, to turn on the light of the bedroom, is right 1.7 % of the time:
    as often as its names are those of the conversation."""

    name = "tool_call"
    modality = "text"
    definition = (
        "One call of one of two or three tools, out of nine with one or two parameters (string, "
        "enum, integer, number, boolean). Tools and parameters each have two names, of which the "
        "conversation's definition has one, and any order. When thinking is on, a thought names "
        "the tool. Right is the one call with all its arguments, and no text. Held out: one in "
        "eight combinations of a tool and its values, by their hash; of tools with few values that "
        "is one or two, and of music none. Baseline: a constant call."
    )
    baseline = 0.017

    def make(self, rng: random.Random, split: Split) -> Example:
        request = draw_in(split, lambda: _draw_request(rng))
        tool = TOOLS[request.tool]
        others = sorted(set(TOOLS) - {request.tool})
        offered = [offer(rng, tool)]
        offered += (
            offer(rng, TOOLS[key]) for key in rng.sample(others, rng.choice(_NUM_TOOLS) - 1)
        )
        wanted = offered[0]
        rng.shuffle(offered)
        arguments = {name: request.values[key] for key, name in wanted.parameter_names.items()}
        call = Call(name=wanted.name, arguments=arguments)
        said = {key: tool.parameters[key].slot.say(value) for key, value in request.values.items()}
        thinks = rng.random() < 0.5
        return Example(
            messages=[user(rng.choice(tool.texts).format(**said))],
            answer=assistant("", reasoning=f"I call {call.name}." if thinks else "", call=call),
            tools=[one.definition for one in offered],
            thinks=thinks,
            target=WantedCall(request=request, call=call),
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        call, wanted = only_call(answer), example.target.call
        return (
            call is not None
            and call.name == wanted.name
            and same_json(call.arguments, wanted.arguments)
        )


def _draw_request(rng: random.Random) -> Request:
    tool = rng.choice(list(TOOLS))
    parameters = TOOLS[tool].parameters
    return Request(
        tool=tool, values={key: parameter.slot.draw(rng) for key, parameter in parameters.items()}
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Field:
    """A number that a result states: what it may be, how it is asked for and told."""

    values: range
    question: str
    answer: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """A tool that is called with a subject and answers with an object of two numbers."""

    tool: str
    description: str
    parameter: str
    subjects: Sequence[str]
    fields: Mapping[str, _Field]


_SOURCES = (
    _Source(
        tool="get_weather",
        description="Current weather",
        parameter="city",
        subjects=CITIES,
        fields={
            "degrees": _Field(
                values=range(1, 40),
                question="How warm is it in {subject}?",
                answer="It is {value} degrees in {subject}.",
            ),
            "wind": _Field(
                values=range(1, 100),
                question="How strong is the wind in {subject}?",
                answer="The wind in {subject} is {value} km per hour.",
            ),
        },
    ),
    _Source(
        tool="get_product",
        description="Price and stock",
        parameter="product",
        subjects=PRODUCTS,
        fields={
            "price": _Field(
                values=range(2, 100),
                question="How much does the {subject} cost?",
                answer="The {subject} costs {value} dollars.",
            ),
            "stock": _Field(
                values=range(2, 100),
                question="How many are left of the {subject}?",
                answer="There are {value} left of the {subject}.",
            ),
        },
    ),
    _Source(
        tool="next_train",
        description="Next train to a city",
        parameter="city",
        subjects=CITIES,
        fields={
            "minutes": _Field(
                values=range(2, 60),
                question="When does the next train to {subject} leave?",
                answer="The train to {subject} leaves in {value} minutes.",
            ),
            "platform": _Field(
                values=range(1, 25),
                question="From which platform does the train to {subject} leave?",
                answer="The train to {subject} leaves from platform {value}.",
            ),
        },
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ToolQuestion:
    """A question about one field of what a tool knows of a subject."""

    source: _Source
    subject: str
    field: str
    result: Mapping[str, int]

    @property
    def key(self) -> str:
        return f"{self.source.tool} {self.subject} {self.field} {self.value}"

    @property
    def value(self) -> int:
        return self.result[self.field]


class ToolResult(Task):
    """A constant sentence is right 0.5 % of the time; one of the two numbers at random, half."""

    name = "tool_result"
    modality = "text"
    definition = (
        "A question, the call of a tool (one of three), its result of two numbers as JSON, and one "
        "sentence as the answer. Right: it names the subject, states the number that was asked for "
        "and no other, and calls nothing. Held out: one in eight combinations of tool, subject, "
        "field and number. Baseline: who reads all but which number is asked for; a constant "
        "sentence is right 0.5 % of the time."
    )
    baseline = 0.5

    def make(self, rng: random.Random, split: Split) -> Example:
        problem = draw_in(split, lambda: _draw_question(rng))
        source, field = problem.source, problem.source.fields[problem.field]
        call = Call(name=source.tool, arguments={source.parameter: problem.subject})
        return Example(
            messages=[
                user(field.question.format(subject=problem.subject)),
                assistant("", call=call),
                {"role": "tool", "content": json.dumps(problem.result)},
            ],
            answer=assistant(field.answer.format(subject=problem.subject, value=problem.value)),
            tools=[_definition(source)],
            thinks=rng.random() < 0.5,
            target=problem,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        question, text = example.target, content_of(answer)
        return (
            re.findall(r"-?[0-9]+", text) == [str(question.value)]
            and re.search(rf"\b{question.subject}\b", text) is not None
            and re.fullmatch(r"[^.!?\n]+\.", text) is not None
        )


def _draw_question(rng: random.Random) -> ToolQuestion:
    source = rng.choice(_SOURCES)
    names = rng.sample(sorted(source.fields), len(source.fields))
    return ToolQuestion(
        source=source,
        subject=rng.choice(source.subjects),
        field=rng.choice(names),
        result={name: rng.choice(source.fields[name].values) for name in names},
    )


def _definition(source: _Source) -> Mapping[str, Any]:
    schema = {
        "type": "object",
        "properties": {source.parameter: {"type": "string"}},
        "required": [source.parameter],
    }
    function = {"name": source.tool, "description": source.description, "parameters": schema}
    return {"type": "function", "function": function}
