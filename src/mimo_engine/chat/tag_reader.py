"""Tags of the text protocol (protocol.md 4.1), and how to find them in text that is still growing.

A tag that ends with `=` here is followed by a name and `>`. No tag contains a `<` but its first, so
that one place at most, the last `<`, can be the beginning of a tag that is not whole yet.
"""

from __future__ import annotations

import re

from mimo_engine.chat.tools import MAX_NAME_LEN

__all__ = [
    "CALL",
    "END_CALL",
    "END_FUNCTION",
    "END_PARAMETER",
    "END_THINK",
    "FUNCTION",
    "PARAMETER",
    "THINK",
    "TagReader",
    "Tags",
    "name_in",
]

THINK, END_THINK = "<think>", "</think>"
CALL, END_CALL = "<tool_call>", "</tool_call>"
FUNCTION, END_FUNCTION = "<function=", "</function>"
PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"

_NAME = rf"[^<>\n]{{1,{MAX_NAME_LEN}}}+>"
_NOT_IN_NAME = re.compile(r"[<>\n]")
_NEVER = "(?!)"
_SPACE = re.compile(r"[ \t\r\n]*")


def name_in(tag: str) -> str:
    """The NAME of `<function=NAME>` or `<parameter=NAME>`."""
    return tag[tag.index("=") + 1 : -1]


class Tags:
    """Some tags, to be found in text that is still growing."""

    def __init__(self, *tags: str) -> None:
        self._tags = tags
        self.pattern = re.compile(
            "|".join(re.escape(tag) + (_NAME if tag.endswith("=") else "") for tag in tags)
            or _NEVER
        )
        self._max_len = max(map(len, tags), default=0) + MAX_NAME_LEN

    def end_of_text(self, buffer: str, start: int) -> int:
        """Where a tag that is not whole yet may begin; the end of `buffer` if nowhere."""
        last = buffer.rfind("<", max(start, len(buffer) - self._max_len))
        return last if last >= 0 and self.may_grow(buffer, last) else len(buffer)

    def may_grow(self, buffer: str, start: int) -> bool:
        """Whether all of `buffer` from `start` may be the beginning of one of the tags."""
        if len(buffer) - start > self._max_len:
            return False
        suffix = buffer[start:]
        for tag in self._tags:
            if tag.startswith(suffix):
                return True
            if tag.endswith("=") and suffix.startswith(tag):
                name = suffix[len(tag) :]
                return len(name) <= MAX_NAME_LEN and not _NOT_IN_NAME.search(name)
        return False


class TagReader:
    """The part of a growing text that has not been read. Only what may become a tag stays long."""

    def __init__(self) -> None:
        self._buffer = ""
        self._position = 0

    def push(self, text: str) -> None:
        """Add `text` to the end."""
        self._buffer = self._buffer[self._position :] + text
        self._position = 0

    def skip(self, tag: str) -> None:
        """Read the tag that comes next."""
        self._position += len(tag)

    def rest(self) -> str:
        """What has not been read."""
        return self._buffer[self._position :]

    def text_until(self, tags: Tags) -> tuple[str, str]:
        """Text up to one of `tags`, and the tag, not yet read; "" if there is none so far."""
        start = self._position
        match = tags.pattern.search(self._buffer, start)
        self._position = match.start() if match else tags.end_of_text(self._buffer, start)
        return self._buffer[start : self._position], match[0] if match else ""

    def space(self) -> str:
        """Read the white space that comes next."""
        match = _SPACE.match(self._buffer, self._position)
        assert match is not None
        self._position = match.end()
        return match[0]

    def next_tag(self, tags: Tags) -> str | None:
        """The one of `tags` that comes next, not yet read. "": none does. None: not known yet."""
        if match := tags.pattern.match(self._buffer, self._position):
            return match[0]
        return None if tags.may_grow(self._buffer, self._position) else ""
