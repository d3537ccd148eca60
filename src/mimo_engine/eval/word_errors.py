"""Words of a transcript, and how many of them are wrong.

Normalisation, the same for reference and answer:

1. Unicode NFKC (full-width letters, ligatures), then case folding.
2. A typographic apostrophe is a plain one. Between two letters it is part of the word (don't).
3. Every other punctuation mark and symbol is a space, hyphens too.
4. Chinese characters and kana are each a word: there are no spaces to go by.

Numbers are not spelled out and spelling is not unified, as other normalisers do, so rates are
comparable with others of this one alone.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

import numpy as np

__all__ = ["num_word_errors", "words_of"]

_CHARACTER = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Hiragana, katakana, and Han characters with their extensions."""
_WORD = re.compile(rf"[{_CHARACTER}]|[^\s{_CHARACTER}]+")
_LOOSE_APOSTROPHE = re.compile(r"(?<!\w)'|'(?!\w)")


def words_of(text: str) -> list[str]:
    """The normalised words of a transcript."""
    folded = unicodedata.normalize("NFKC", text).casefold().replace("\u2019", "'")
    plain = _LOOSE_APOSTROPHE.sub(" ", "".join(map(_kept, folded)))
    return _WORD.findall(plain)


def num_word_errors(reference: Sequence[str], answer: Sequence[str]) -> int:
    """Substitutions, deletions and insertions that make `answer` of `reference`, at least.

    The usual dynamic programme over rows: with d[i, j] that number for the first i and j words,
    d[i, j] = min(d[i-1, j-1] + (differ), d[i-1, j] + 1, d[i, j-1] + 1). A row is one step of numpy:
    the last term is a running minimum of d[i, j] - j.
    """
    ids: dict[str, int] = {}
    known = np.array([ids.setdefault(word, len(ids)) for word in answer], np.int64)
    columns = np.arange(len(answer) + 1)
    row = columns.copy()
    for word in reference:
        differs = known != ids.get(word, -1)
        below = row + 1
        below[1:] = np.minimum(below[1:], row[:-1] + differs)
        row = np.minimum.accumulate(below - columns) + columns
    return int(row[-1])


def _kept(character: str) -> str:
    """The character, or the space that stands for it."""
    is_mark = unicodedata.category(character)[0] in "PSZC"
    return " " if is_mark and character != "'" else character
