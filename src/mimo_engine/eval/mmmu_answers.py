"""Reads MMMU answers: which option a text chose, and whether a text holds an open answer.

Rules for options, each tried when the ones before find nothing; the last occurrence counts:

1. `Answer: X`, whatever marks stand around X.
2. `(X)`.
3. X alone between spaces.
4. The words of an option.
5. The first option.

Rule 5 is what the public numbers were computed with: a text that chooses nothing is right as often
as A is. So `found_by` says which rule it was, and the report counts them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from string import ascii_uppercase

__all__ = ["GUESSED", "Choice", "chosen_option", "is_right_open_answer"]

GUESSED = "guessed"
"""`found_by` of rule 5."""
_PUNCTUATION = ",.!?;:'"
_FINAL = re.compile(r"answer\W*?:(.*)", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The option that a text chose."""

    letter: str
    found_by: str


def chosen_option(text: str, options: Sequence[str]) -> Choice:
    """options: one or more, the first one is A."""
    letters = ascii_uppercase[: len(options)]
    patterns = {
        "stated": rf"(?i:answer)\W*?:\W*([{letters}])\b",
        "bracketed": rf"\(([{letters}])\)",
        "letter": rf"(?<!\S)([{letters}])(?!\S)",
    }
    stripped = text.strip().strip(_PUNCTUATION)
    for found_by, pattern in patterns.items():
        found = re.findall(pattern, stripped)
        if found:
            return Choice(letter=found[-1], found_by=found_by)
    lowered = text.lower()
    places = [
        (lowered.rfind(option.lower()) + len(option.lower()), len(option), letter)
        for letter, option in zip(letters, options, strict=True)
        if option and option.lower() in lowered
    ]
    if places:
        # Of options that end at one place, the longer one holds the shorter.
        return Choice(letter=max(places)[2], found_by="option text")
    return Choice(letter=letters[0], found_by=GUESSED)


def is_right_open_answer(text: str, expected: Sequence[str]) -> bool:
    """Whether what follows the last `Answer:`, or else the last line, holds one of `expected`.

    A number is compared as a number, to two decimals, with every number there; other answers word
    by word, case and punctuation aside.
    """
    stated = _FINAL.findall(text)
    final = stated[-1] if stated and stated[-1].strip() else text.strip().splitlines()[-1]
    return any(_holds(final, answer) for answer in expected)


def _holds(text: str, answer: str) -> bool:
    number = _number(answer)
    if number is None:
        words = _words(answer)
        # An answer may be nothing but signs.
        return f" {words} " in f" {_words(text)} " if words else answer.strip() in text
    found = _NUMBER.findall(text.replace(",", ""))
    return any(round(float(one), 2) == number for one in found)


def _number(text: str) -> float | None:
    """To two decimals; None where the whole text is no number."""
    plain = text.strip().replace(",", "")
    return round(float(plain), 2) if _NUMBER.fullmatch(plain) else None


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
