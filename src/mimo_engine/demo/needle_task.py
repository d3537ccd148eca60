"""A code at the beginning, many sentences, and then the question.

Only attention over the whole prompt answers it: the text between is several sliding windows long.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from mimo_engine.demo.splits import draw_in
from mimo_engine.demo.task import Example, Message, Split, Task
from mimo_engine.demo.turns import assistant, content_of, user
from mimo_engine.demo.words import CITIES, COLOURS, NAMES, PRODUCTS

__all__ = ["Code", "Needle"]

_CODE_LEN = 4
"""Digits."""
_NUM_SENTENCES = range(6, 17)
_SECRETS = ("code", "password", "secret number", "key number")
_FILLERS = (
    "The {colour} {product} is in the room.",
    "{name} likes the {colour} {product}.",
    "{name} went to {city} with a {product}.",
    "It was a long day in {city}.",
    "The {product} of {name} is {colour}.",
    "{name} lives in {city}.",
    "The {colour} {product} was a gift from {name}.",
    "The weather in {city} was good.",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """Four digits, zeros in front included."""

    digits: str

    @property
    def key(self) -> str:
        return self.digits


class Needle(Task):
    """1,283 of 10,000 codes are held out: a constant one of them is right 0.08 % of the time."""

    name = "needle"
    modality = "text"
    definition = (
        "Say the code of four digits that stands before 6 to 16 sentences without digits; half of "
        "the time two people have a code each, and one of them is asked. Held out: one in eight "
        "codes, the one not asked included. Baseline: a constant one "
        "of these."
    )
    baseline = 0.0008

    def make(self, rng: random.Random, split: Split) -> Example:
        secret = rng.choice(_SECRETS)
        code = draw_in(split, lambda: _draw_code(rng))
        if rng.random() < 0.5:
            beginning, question = f"The {secret} is {code.digits}.", f"What is the {secret}?"
        else:
            other = draw_in(split, lambda: _draw_code(rng))
            name, other_name = rng.sample(NAMES, 2)
            said = [
                f"The {secret} of {name} is {code.digits}.",
                f"The {secret} of {other_name} is {other.digits}.",
            ]
            rng.shuffle(said)
            beginning, question = " ".join(said), f"What is the {secret} of {name}?"
        fillers = (_filler(rng) for _ in range(rng.choice(_NUM_SENTENCES)))
        return Example(
            messages=[user(" ".join((beginning, *fillers, question)))],
            answer=assistant(code.digits),
            thinks=rng.random() < 0.5,
            target=code,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        return content_of(answer) == example.target.digits


def _draw_code(rng: random.Random) -> Code:
    return Code(digits="".join(rng.choices("0123456789", k=_CODE_LEN)))


def _filler(rng: random.Random) -> str:
    return rng.choice(_FILLERS).format(
        colour=rng.choice(COLOURS),
        product=rng.choice(PRODUCTS),
        name=rng.choice(NAMES),
        city=rng.choice(CITIES),
    )
