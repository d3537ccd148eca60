"""Texts that are one text cut in pieces, put together again while they arrive."""

from __future__ import annotations

import re

__all__ = ["JoinedText"]

# Thai, Lao, Tibetan, Burmese, Khmer, Chinese, Japanese (Korean has spaces), full-width marks.
_WITHOUT_SPACES = re.compile(
    "[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u2e80-\u312f\u31a0-\u9fff\uf900-\ufaff\uff00-\uffef"
    "\U00020000-\U0003ffff]"
)


class JoinedText:
    """What `add` returns, joined, is `text`: the pieces without the white space around them, with a
    space between two, unless one of the neighbours is of a script that has none."""

    def __init__(self) -> None:
        self._parts: list[str] = []
        self._last = ""
        """Character of what was handed out."""
        self._spaces = ""
        """White space that counts if the piece goes on."""
        self._begins = True
        """Nothing of the piece was handed out yet."""

    @property
    def text(self) -> str:
        return "".join(self._parts)

    def add(self, text: str) -> str:
        """More of the piece; returns what that adds to the whole."""
        if self._begins:
            text = text.lstrip()
        body = text.rstrip()
        if not body:
            self._spaces += text
            return ""
        head = self._between(body[0]) if self._begins else self._spaces
        added = head + body
        self._begins, self._last, self._spaces = False, body[-1], text[len(body) :]
        self._parts.append(added)
        return added

    def next_piece(self) -> None:
        self._begins, self._spaces = True, ""

    def _between(self, first: str) -> str:
        is_joint = self._last and not _WITHOUT_SPACES.match(self._last)
        return " " if is_joint and not _WITHOUT_SPACES.match(first) else ""
