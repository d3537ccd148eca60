"""Sums and word problems, answered by a thought that writes each step down, then a bare number."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from mimo_engine.demo.splits import draw_in
from mimo_engine.demo.task import Example, Message, Split, Task
from mimo_engine.demo.turns import assistant, content_of, user
from mimo_engine.demo.words import NAMES, THINGS

__all__ = ["Story", "Sum", "Sums", "WordProblems"]

_PLACES = ("ones", "tens", "hundreds")
# Large numbers more often: there are more of them to learn.
_NUM_DIGITS = (1, 2, 2, 3, 3, 3)
_SUM_TEXTS = (
    "What is {sum}?",
    "How much is {sum}?",
    "Calculate {sum}.",
    "{sum} = ?",
    "{sum}",
    "Please compute {sum}.",
)
_SIGN_TEXTS: Mapping[str, tuple[str, ...]] = {
    "+": (" + ", " + ", "+", " plus "),
    "-": (" - ", " - ", "-", " minus "),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Sum:
    """`first` + or - `second`; the first is the larger one of a difference."""

    first: int
    sign: str
    second: int

    @property
    def key(self) -> str:
        """The same for a + b and b + a."""
        numbers = (self.first, self.second)
        return f"{min(numbers)}{self.sign}{max(numbers)}"

    @property
    def result(self) -> int:
        return self.first + self.second if self.sign == "+" else self.first - self.second

    @property
    def steps(self) -> str:
        """By columns from the right: "47+85: ones 7+5=12 carry 1; tens 4+8+1=13 carry 1; so 132".

        A difference writes the ten that it borrows: "52-7: ones 12-7=5 borrow 1; tens 5-0-1=4; so
        45". After "so" come all columns, zeros in front included.
        """
        num_places = max(len(str(self.first)), len(str(self.second)))
        steps: list[str] = []
        written, carry = "", 0
        for place in _PLACES[:num_places]:
            power = 10 ** _PLACES.index(place)
            upper, lower = self.first // power % 10, self.second // power % 10
            if self.sign == "-" and upper < lower + carry:
                upper += 10
            terms = f"{upper}{self.sign}{lower}" + (f"{self.sign}{carry}" if carry else "")
            column = upper + lower + carry if self.sign == "+" else upper - lower - carry
            carry = int(max(upper, column) > 9)
            word = "carry" if self.sign == "+" else "borrow"
            steps.append(f"{place} {terms}={column}" + (f" {word} 1" if carry else ""))
            written = f"{column % 10}{written}"
        if carry:
            written = f"1{written}"
        return f"{self.first}{self.sign}{self.second}: {'; '.join(steps)}; so {written}"


class Sums(Task):
    """The best constant is right as often as the most frequent result: 1.1 %."""

    name = "sums"
    modality = "text"
    definition = (
        "a + b or a - b of whole numbers of one to three digits, a difference never negative, in "
        "six phrasings. The thought works column by column with carries; the answer is the bare "
        "number. Held out: one in eight pairs of numbers, a + b and b + a being one pair. "
        "Baseline: the most frequent result."
    )
    baseline = 0.011

    def make(self, rng: random.Random, split: Split) -> Example:
        problem = draw_in(split, lambda: _draw_sum(rng))
        sign = rng.choice(_SIGN_TEXTS[problem.sign])
        text = rng.choice(_SUM_TEXTS).format(sum=f"{problem.first}{sign}{problem.second}")
        return Example(
            messages=[user(text)],
            answer=assistant(str(problem.result), reasoning=problem.steps),
            target=problem,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        return content_of(answer) == str(example.target.result)


def _draw_sum(rng: random.Random) -> Sum:
    numbers = [_draw_number(rng), _draw_number(rng)]
    sign = rng.choice("+-")
    if sign == "-":
        numbers.sort(reverse=True)
    return Sum(first=numbers[0], sign=sign, second=numbers[1])


def _draw_number(rng: random.Random) -> int:
    num_digits = rng.choice(_NUM_DIGITS)
    return rng.randrange(10 ** (num_digits - 1) if num_digits > 1 else 0, 10**num_digits)


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
}
_GAINS = ("buys", "finds", "gets")
_LOSSES = ("loses", "sells", "gives away")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plot:
    """A kind of story: its signs between the numbers, from left to right, and its texts."""

    signs: str
    texts: tuple[str, ...]


_HAS_NOW = "How many {things} does {name} have now?"
_PLOTS: Mapping[str, _Plot] = {
    "gain": _Plot(
        signs="+",
        texts=(
            "{name} has {n[0]} {things} and {gains} {n[1]} more. " + _HAS_NOW,
            "{name} has {n[0]} {things}. {other} gives {name} {n[1]} more. " + _HAS_NOW,
        ),
    ),
    "loss": _Plot(
        signs="-",
        texts=(
            "{name} has {n[0]} {things} and {loses} {n[1]}. How many {things} are left?",
            "There are {n[0]} {things} on the table. {name} takes {n[1]}. "
            "How many {things} are left?",
        ),
    ),
    "together": _Plot(
        signs="+",
        texts=(
            "{name} has {n[0]} {things} and {other} has {n[1]} {things}. "
            "How many {things} do they have together?",
        ),
    ),
    "more": _Plot(
        signs="+",
        texts=(
            "{name} has {n[0]} {things}. {other} has {n[1]} more than {name}. "
            "How many {things} does {other} have?",
        ),
    ),
    "fewer": _Plot(
        signs="-",
        texts=(
            "{name} has {n[0]} {things}. {other} has {n[1]} fewer than {name}. "
            "How many {things} does {other} have?",
        ),
    ),
    "groups": _Plot(
        signs="*",
        texts=(
            "{name} has {n[0]} boxes with {n[1]} {things} each. "
            "How many {things} does {name} have?",
        ),
    ),
    "groups and more": _Plot(
        signs="*+",
        texts=(
            "{name} has {n[0]} boxes with {n[1]} {things} each and {n[2]} more {things}. "
            "How many {things} does {name} have?",
        ),
    ),
    "gain and loss": _Plot(
        signs="+-",
        texts=("{name} has {n[0]} {things}, {gains} {n[1]} more and {loses} {n[2]}. " + _HAS_NOW,),
    ),
    "loss and gain": _Plot(
        signs="-+",
        texts=("{name} has {n[0]} {things}, {loses} {n[1]} and {gains} {n[2]} more. " + _HAS_NOW,),
    ),
    "two losses": _Plot(
        signs="--",
        texts=(
            "{name} has {n[0]} {things}, {loses} {n[1]} and then {loses} {n[2]} more. "
            "How many {things} are left?",
        ),
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Story:
    """The numbers of a plot in the order of the text."""

    plot: str
    numbers: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.plot} {self.numbers}"

    @property
    def values(self) -> list[int]:
        """The first number and what it is after each step."""
        values = [self.numbers[0]]
        for sign, number in zip(_PLOTS[self.plot].signs, self.numbers[1:], strict=True):
            values.append(_OPERATIONS[sign](values[-1], number))
        return values

    @property
    def result(self) -> int:
        return self.values[-1]

    @property
    def steps(self) -> str:
        """Such as "12+7=19; 19-4=15"."""
        values = self.values
        parts = zip(values, _PLOTS[self.plot].signs, self.numbers[1:], values[1:], strict=False)
        return "; ".join(f"{before}{sign}{n}={after}" for before, sign, n, after in parts)


class WordProblems(Task):
    """The best constant is right as often as the most frequent result: 3.5 %."""

    name = "word_problems"
    modality = "text"
    definition = (
        "A story of one or two steps of +, - or times, of ten kinds, about 16 people and 12 things."
        " The first number is 2 to 60 (2 to 9 of a product), the others 2 to 9, no result below 0. "
        "The thought is the equations; the answer is the bare number. Held out: one in eight "
        "combinations of a kind and its numbers. Baseline: the most frequent result."
    )
    baseline = 0.035

    def make(self, rng: random.Random, split: Split) -> Example:
        story = draw_in(split, lambda: _draw_story(rng))
        name, other = rng.sample(NAMES, 2)
        text = rng.choice(_PLOTS[story.plot].texts).format(
            n=story.numbers,
            name=name,
            other=other,
            things=rng.choice(THINGS),
            gains=rng.choice(_GAINS),
            loses=rng.choice(_LOSSES),
        )
        return Example(
            messages=[user(text)],
            answer=assistant(str(story.result), reasoning=story.steps),
            target=story,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        return content_of(answer) == str(example.target.result)


def _draw_story(rng: random.Random) -> Story:
    plot = rng.choice(list(_PLOTS))
    signs = _PLOTS[plot].signs
    while True:
        first = rng.randint(2, 9 if signs.startswith("*") else 60)
        numbers = (first, *(rng.randint(2, 9) for _ in signs))
        story = Story(plot=plot, numbers=numbers)
        if min(story.values) >= 0:
            return story
