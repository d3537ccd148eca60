"""Facts of a few sentences as JSON, to a schema that stands in the user's text."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimo_engine.demo.slots import Slot
from mimo_engine.demo.splits import draw_in
from mimo_engine.demo.task import Example, Message, Split, Task
from mimo_engine.demo.turns import assistant, content_of, parsed, same_json, user
from mimo_engine.demo.words import CITIES, COLOURS, FOODS, NAMES, PRODUCTS

__all__ = ["JsonAnswer", "Record"]

_STRING: Mapping[str, Any] = {"type": "string"}
_INTEGER: Mapping[str, Any] = {"type": "integer"}
_BOOLEAN: Mapping[str, Any] = {"type": "boolean"}
_STRINGS: Mapping[str, Any] = {"type": "array", "items": {"type": "string"}}

_TEXTS = (
    "{facts} Answer as JSON to this schema: {schema}",
    "{facts} Write this as JSON with the schema {schema}",
    "Read this: {facts} Give me JSON to this schema: {schema}",
    "JSON schema: {schema} Text: {facts}",
)


def _two_or_three(words: Sequence[str]) -> list[list[str]]:
    return [list(some) for count in (2, 3) for some in itertools.permutations(words, count)]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fact:
    """A sentence about the subject, and the property whose value it states."""

    sentence: str
    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class _Domain:
    """A kind of subject, the property that names it, and what may be said of it, by property."""

    subject: str
    subjects: Sequence[str]
    facts: Mapping[str, _Fact]


_PERSON = _Domain(
    subject="name",
    subjects=NAMES,
    facts={
        "age": _Fact(
            sentence="{subject} is {value} years old.",
            slot=Slot(schema=_INTEGER, values=range(10, 100)),
        ),
        "city": _Fact(
            sentence="{subject} lives in {value}.", slot=Slot(schema=_STRING, values=CITIES)
        ),
        "likes": _Fact(
            sentence="{subject} likes {value}.",
            slot=Slot(schema=_STRINGS, values=_two_or_three(FOODS)),
        ),
        "student": _Fact(
            sentence="{subject} is {value}.",
            slot=Slot(
                schema=_BOOLEAN,
                values=(True, False),
                spoken={True: "a student", False: "not a student"},
            ),
        ),
    },
)
_PRODUCT = _Domain(
    subject="product",
    subjects=PRODUCTS,
    facts={
        "price": _Fact(
            sentence="The {subject} costs {value} dollars.",
            slot=Slot(schema=_INTEGER, values=range(2, 100)),
        ),
        "maker": _Fact(
            sentence="The {subject} is made in {value}.",
            slot=Slot(schema=_STRING, values=CITIES),
        ),
        "colours": _Fact(
            sentence="The {subject} comes in {value}.",
            slot=Slot(schema=_STRINGS, values=_two_or_three(COLOURS)),
        ),
        "in_stock": _Fact(
            sentence="The {subject} is {value}.",
            slot=Slot(
                schema=_BOOLEAN,
                values=(True, False),
                spoken={True: "in stock", False: "not in stock"},
            ),
        ),
    },
)
_DOMAINS = (_PERSON, _PRODUCT)


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """The object that is asked for, and all that the text says (one fact more than is asked)."""

    wanted: Mapping[str, Any]
    schema: Mapping[str, Any]
    facts: Sequence[str]

    @property
    def key(self) -> str:
        return json.dumps(self.wanted, sort_keys=True)


class JsonAnswer(Task):
    """A constant object, whether a product is in stock, is right 3.3 % of the time."""

    name = "json"
    modality = "text"
    definition = (
        "Two or three sentences about a person or a product, and a JSON schema with two or three "
        "properties (string, integer, boolean, array of two or three strings) in any order; one "
        "sentence states what is not asked. The answer is the object with exactly the values of "
        "the text. Held out: one in eight objects. Baseline: a constant object."
    )
    baseline = 0.033

    def make(self, rng: random.Random, split: Split) -> Example:
        record = draw_in(split, lambda: _draw_record(rng))
        text = rng.choice(_TEXTS).format(
            facts=" ".join(record.facts), schema=json.dumps(record.schema)
        )
        return Example(
            messages=[user(text)],
            answer=assistant(json.dumps(record.wanted)),
            thinks=rng.random() < 0.5,
            target=record,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        return same_json(parsed(content_of(answer)), dict(example.target.wanted))


def _draw_record(rng: random.Random) -> Record:
    domain = rng.choice(_DOMAINS)
    subject = rng.choice(domain.subjects)
    values: dict[str, Any] = {domain.subject: subject}
    schemas: dict[str, Any] = {domain.subject: _STRING}
    sentences: list[str] = []
    num_facts = rng.randint(2, 3)
    said = rng.sample(sorted(domain.facts), num_facts)
    for name in said:
        fact = domain.facts[name]
        values[name] = fact.slot.draw(rng)
        schemas[name] = fact.slot.schema
        sentence = fact.sentence.format(subject=subject, value=fact.slot.say(values[name]))
        sentences.append(sentence)
    # The first fact is not asked for; the subject is, as if it were one of the others.
    asked = [domain.subject, *said[1:]]
    rng.shuffle(asked)
    rng.shuffle(sentences)
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: dict(schemas[name]) for name in asked},
    }
    if rng.random() < 0.5:
        schema["required"] = asked
    return Record(
        wanted={name: values[name] for name in asked}, schema=schema, facts=tuple(sentences)
    )
