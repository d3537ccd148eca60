r"""Reads MMMU answers: which option a text chose, and whether a text holds an open answer.

Rules for options, each tried when the ones before find nothing; the last occurrence counts:

1. `Answer: X`, whatever marks stand around X. Here and in 2 a small x does if no words follow it.
2. `answer is X`, likewise.
3. `(X)` or `\boxed{X}`.
4. X alone between spaces.
5. The words of an option.
6. The first option.

Where an option begins at the letter that was found, as "A cat" does in `Answer: A cat`, the letter
was a word, and that option is chosen.

Rule 6 is what the public numbers were computed with: a text that chooses nothing is right as often
as A is. So `found_by` says which rule it was, and the report counts them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from string import ascii_uppercase

__all__ = ["GUESSED", "Choice", "chosen_option", "is_right_open_answer"]

GUESSED = "guessed"
"""`found_by` of rule 6."""
_OPTION_TEXT = "option text"
_PUNCTUATION = ",.!?;:'"
_MARKS = " \t\r.:*_`$#~|()[]{}\\"
"""What Markdown and LaTeX put around an answer; a line of these alone is none."""
_LATEX_TEXT = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf)\s*\{([^{}]*)\}")
_LATEX_BOX = re.compile(r"\\boxed\s*\{([^{}]*)\}")

_FINAL = re.compile(r"answer\W*?:(.*)", re.IGNORECASE)
_NUMBER = re.compile(r"-?(?:\d+(?:\.\d+)?|\.\d+)(?:e[+-]?\d+)?", re.IGNORECASE)
_MINUS = "\u2212"
_DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013", "-"))
_MONEY_AFTER_SIGN = re.compile(r"(?<=-)\\?[$€£¥](?=[\d.])")
_TIMES = re.compile(r"[\u00d7\u22c5\u00b7]|\\times\b|\\cdot\b")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_HYPHEN = re.compile(r"(?<=[^\W\d_]{2})(?:-| - )(?=\w)|(?<=\w)(?:-| - )(?=[^\W\d_]{2})")
"""A dash beside letters that are a word; between numbers and single letters it is a minus."""
_SIGN = r"(?<![\w)\]}])"
"""Where - and + say which number it is, and do not join two."""
_PLUS_SIGN = re.compile(rf"{_SIGN}[+](?=\.?\d)")
_TOKEN = re.compile(
    rf"(?P<number>(?:{_SIGN}-)?(?:\d+(?:\.\d+)?|(?<!\w)\.\d+))"
    rf"|{_SIGN}-[^\W\d_]\b|[^\W\d]\w*|[-+/^=<>]"
    # Other stars are Markdown's.
    r"|(?<=[\w)\]}])[*](?=[\w(\\{-])|(?<=\s)[*](?=\s)"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The option that a text chose."""

    letter: str
    found_by: str


@dataclass(frozen=True, kw_only=True, slots=True)
class _Token:
    text: str
    is_glued: bool
    """Whether it goes on where a word or number before it ends, as V in 5V."""


def chosen_option(text: str, options: Sequence[str]) -> Choice:
    """options: one or more, the first one is A."""
    letters = ascii_uppercase[: len(options)]
    plain = _without_latex(text).strip().strip(_PUNCTUATION)
    for found_by, pattern in _patterns(letters, options):
        found = list(re.finditer(pattern, plain))
        if found:
            begin = found[-1].start("letter")
            worded = _option_at_begin(plain[begin:], options)
            if worded is not None:
                return Choice(letter=worded, found_by=_OPTION_TEXT)
            return Choice(letter=plain[begin].upper(), found_by=found_by)
    lowered = text.lower()
    places = [
        (lowered.rfind(option.lower()) + len(option.lower()), len(option), letter)
        for letter, option in zip(letters, options, strict=True)
        if option and option.lower() in lowered
    ]
    if places:
        # Of options that end at one place, the longer one holds the shorter.
        return Choice(letter=max(places)[2], found_by=_OPTION_TEXT)
    return Choice(letter=letters[0], found_by=GUESSED)


def is_right_open_answer(text: str, expected: Sequence[str]) -> bool:
    """Whether what follows the last `Answer:`, or else the last line, holds one of `expected`.

    A number is compared as a number, to two decimals, with every number there. Other answers are
    compared word by word, case and punctuation aside; numbers among the words keep sign and
    decimals, and operators count.
    """
    lines = _final_lines(_without_latex(text))
    return any(_holds(line, answer) for line in lines for answer in expected)


def _without_latex(text: str) -> str:
    r"""\text{X} is X, and \boxed{X} is (X)."""
    return _LATEX_BOX.sub(r"(\1)", _LATEX_TEXT.sub(r"\1", text))


def _patterns(letters: str, options: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Rules 1 to 4 by name; what they find is the group `letter`."""
    texts = {option.strip(_MARKS) for option in options}
    # An option may be the name of a quantity: c is then the speed of light, not the third option.
    small = "".join(letter for letter in letters.lower() if letter not in texts)
    alone = rf"|[{small}](?=[).:\]}}](?!\w)|[^\w\n]*$)" if small else ""
    letter = rf"(?:(?i:option|choice)\b\W*+)?(?P<letter>[{letters}]\b{alone})"
    yield "stated", rf"(?m)(?i:answer)[^\w:]*+:\W*+{letter}"
    yield "said", rf"(?m)(?i:answer\W++is\b)[^\w.!?]*+{letter}"
    yield "bracketed", rf"\((?P<letter>[{letters}])\)"
    yield "letter", rf"(?<!\S)(?P<letter>[{letters}])(?!\S)"


def _option_at_begin(text: str, options: Sequence[str]) -> str | None:
    """The letter of the longest option with which the first line begins, or which is all of it but
    an article. An option of one letter is none: it cannot be told from a choice.
    """
    line = _folded(text.partition("\n")[0])
    rest = line.removeprefix("a ")
    found = []
    for letter, option in zip(ascii_uppercase, options, strict=False):
        words = _folded(_without_latex(option))
        is_begin = line.startswith(words) and not re.match(r"\w", line[len(words) :])
        if len(words) > 1 and (is_begin or (rest != line and rest == words)):
            found.append((letter, len(words)))
    return max(found, key=lambda one: one[1])[0] if found else None


def _folded(text: str) -> str:
    return " ".join(text.casefold().split()).strip(_PUNCTUATION + _MARKS)


def _final_lines(text: str) -> list[str]:
    """What may hold an open answer. Where marks are all that follows `Answer:` in its line, that is
    the next line with more than marks, or the last one.
    """
    lines = text.strip().splitlines()
    last = [*lines[-1:], *list(filter(_has_content, lines))[-1:]]
    stated = list(_FINAL.finditer(text))
    if not stated:
        return last
    said, *others = text[stated[-1].start(1) :].splitlines() or [""]
    if _has_content(said):
        return [said]
    # Marks are looked at too: an answer may be nothing but signs.
    return [said, *list(filter(_has_content, others))[:1], *last]


def _has_content(line: str) -> bool:
    return bool(line.strip(_MARKS))


def _holds(text: str, answer: str) -> bool:
    number = _number(answer)
    if number is not None:
        found = _NUMBER.findall(_signed(text).replace(",", ""))
        return any(round(float(one), 2) == number for one in found)
    sought = [token.text for token in _tokens(answer)]
    if not sought:
        # Nothing but signs, which ** around a heading are not.
        return answer.strip() in text.replace("**", " ")
    tokens = _tokens(text)
    # A part of what is written as one is something else: x + 1 is not in 2x + 1.
    edges = [not token.is_glued for token in tokens] + [True]
    return any(
        edges[begin]
        and edges[begin + len(sought)]
        and [token.text for token in tokens[begin : begin + len(sought)]] == sought
        for begin in range(len(tokens) - len(sought) + 1)
    )


def _number(text: str) -> float | None:
    """To two decimals; None where the whole text is no number."""
    plain = _signed(text).strip().replace(",", "")
    return round(float(plain), 2) if _NUMBER.fullmatch(plain) else None


def _signed(text: str) -> str:
    """A minus is -, and stands before its number: -$5 is -5."""
    return _MONEY_AFTER_SIGN.sub("", text.replace(_MINUS, "-"))


def _tokens(text: str) -> list[_Token]:
    """Words, numbers and operators."""
    plain = _TIMES.sub("*", _signed(text.casefold()).translate(_DASHES))
    plain = _HYPHEN.sub(" ", _PLUS_SIGN.sub("", _COMMA_IN_NUMBER.sub("", plain)))
    tokens = []
    for match in _TOKEN.finditer(plain):
        begin = match.start()
        is_glued = begin > 0 and bool(re.fullmatch(r"\w\w", plain[begin - 1 : begin + 1]))
        token = _plain_number(match["number"]) if match["number"] else match[0]
        tokens.append(_Token(text=token, is_glued=is_glued))
    return tokens


def _plain_number(text: str) -> str:
    """0.50 and .5 are 0.5."""
    sign, digits = ("-", text[1:]) if text.startswith("-") else ("", text)
    whole, _, decimals = digits.partition(".")
    return f"{sign}{whole.lstrip('0') or '0'}.{decimals.rstrip('0')}".removesuffix(".")
