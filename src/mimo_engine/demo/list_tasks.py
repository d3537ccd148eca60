"""Short lists: in reverse, in order, and how often something is in one."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass

from mimo_engine.demo.splits import draw_in
from mimo_engine.demo.task import Example, Message, Split, Task
from mimo_engine.demo.turns import assistant, content_of, user
from mimo_engine.demo.words import LETTERS, LIST_WORDS

__all__ = ["Count", "CountItems", "Items", "ReverseList", "SortList"]

_REVERSE_TEXTS = (
    "Reverse this list: {items}",
    "Write this list backwards: {items}",
    "Reverse the order of {items}.",
    "What is {items} in reverse order?",
)
_SORT_TEXTS = (
    "Sort this list: {items}",
    "Put these in order: {items}",
    "Sort {items}.",
    "What is {items} in sorted order?",
)
_COUNT_TEXTS = (
    "How many times does {item} occur in this list: {items}",
    "How often is {item} in this list: {items}",
    "Count {item} in this list: {items}",
    "How many times is {item} in {items}?",
)
_MAX_COUNT = 9
_MAX_OTHERS = 5
_TWO_DIGITS = tuple(str(number) for number in range(10, 100))


@dataclass(frozen=True, kw_only=True, slots=True)
class Items:
    """A list, and the list that answers it."""

    given: tuple[str, ...]
    wanted: tuple[str, ...]

    @property
    def key(self) -> str:
        return ", ".join(self.given)


class ReverseList(Task):
    """A random order of the items is right one time in 6, 24, 120 or 720: 5.5 % of the time."""

    name = "reverse"
    modality = "text"
    definition = (
        "Write a list of 3 to 6 different items backwards: all letters, or all words of a "
        "vocabulary of 32. Held out: one in eight lists. Baseline: the items in random order."
    )
    baseline = 0.055

    def make(self, rng: random.Random, split: Split) -> Example:
        return _example(rng, _REVERSE_TEXTS, draw_in(split, lambda: _draw_reversal(rng)))

    def is_right(self, example: Example, answer: Message) -> bool:
        return _items_of(answer) == example.target.wanted


class SortList(Task):
    """A random order of the items is right one time in 24, 120 or 720: 1.7 % of the time."""

    name = "sort"
    modality = "text"
    definition = (
        "Sort 4 to 6 different items: all numbers of two digits, or all letters. Held out: one in "
        "eight lists. Baseline: the items in random order."
    )
    baseline = 0.017

    def make(self, rng: random.Random, split: Split) -> Example:
        return _example(rng, _SORT_TEXTS, draw_in(split, lambda: _draw_sorting(rng)))

    def is_right(self, example: Example, answer: Message) -> bool:
        return _items_of(answer) == example.target.wanted


def _draw_reversal(rng: random.Random) -> Items:
    given = rng.sample(rng.choice((LETTERS, LIST_WORDS)), rng.randint(3, 6))
    return Items(given=tuple(given), wanted=tuple(reversed(given)))


def _draw_sorting(rng: random.Random) -> Items:
    given = rng.sample(rng.choice((LETTERS, _TWO_DIGITS)), rng.randint(4, 6))
    return Items(given=tuple(given), wanted=tuple(sorted(given)))


def _example(rng: random.Random, texts: Sequence[str], problem: Items) -> Example:
    text = rng.choice(texts).format(items=", ".join(problem.given))
    return Example(
        messages=[user(text)],
        answer=assistant(", ".join(problem.wanted)),
        thinks=rng.random() < 0.5,
        target=problem,
    )


def _items_of(answer: Message) -> tuple[str, ...]:
    return tuple(item.strip() for item in content_of(answer).split(","))


@dataclass(frozen=True, kw_only=True, slots=True)
class Count:
    """What is counted, and where."""

    item: str
    items: tuple[str, ...]

    @property
    def key(self) -> str:
        return f"{self.item} in {', '.join(self.items)}"

    @property
    def result(self) -> int:
        return self.items.count(self.item)

    @property
    def steps(self) -> str:
        """The list with the count so far after each item: "b1 a1 b2 c2"."""
        counts = itertools.accumulate(item == self.item for item in self.items)
        return " ".join(f"{item}{count:d}" for item, count in zip(self.items, counts, strict=True))


class CountItems(Task):
    """All counts from 1 to 9 are equally frequent, so a constant is right 11 % of the time."""

    name = "count"
    modality = "text"
    definition = (
        "How often an item occurs in a list: 1 to 9 times, among 1 to 5 others of two kinds; all "
        "letters, or all words of a vocabulary of 32. The thought is the list with the count so "
        "far after each item; the answer is the bare number. Held out: one in eight pairs of an "
        "item and a list. Baseline: any one of the nine counts."
    )
    baseline = 1 / _MAX_COUNT

    def make(self, rng: random.Random, split: Split) -> Example:
        problem = draw_in(split, lambda: _draw_count(rng))
        text = rng.choice(_COUNT_TEXTS).format(item=problem.item, items=", ".join(problem.items))
        return Example(
            messages=[user(text)],
            answer=assistant(str(problem.result), reasoning=problem.steps),
            target=problem,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        return content_of(answer) == str(example.target.result)


def _draw_count(rng: random.Random) -> Count:
    item, *others = rng.sample(rng.choice((LETTERS, LIST_WORDS)), 3)
    items = [item] * rng.randint(1, _MAX_COUNT)
    items += rng.choices(others, k=rng.randint(1, _MAX_OTHERS))
    rng.shuffle(items)
    return Count(item=item, items=tuple(items))
