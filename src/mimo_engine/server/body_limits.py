"""The body of a request is measured while it comes in: too large or nested too deep, and it is
refused before all of it is here, let alone parsed.

What must hold: whatever a body holds, reading it into Python objects is bounded in time, memory and
recursion. Bytes alone do not see to that: of 256 MiB of `[],` a parser makes 100 million objects,
and of a few kilobytes of `[` the code behind it a stack overflow.
"""

from __future__ import annotations

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimo_engine.server.errors import RefusedError, error_response

__all__ = ["MAX_JSON_DEPTH", "MAX_JSON_VALUES", "BodyLimits", "JsonMeter"]

MAX_JSON_DEPTH = 128
"""Objects and lists within each other. Python's own recursion ends at about 1000."""
MAX_JSON_VALUES = 2_000_000
"""Commas and opening brackets outside strings: the token ids of a few of the longest prompts."""
MAX_JSON_MEMBERS = 200_000
"""Objects and keys: of messages, parts and schemas, which take far longer to check than ids."""


class BodyLimits:
    """413 for bodies over `max_bytes`, announced or not; 400 for JSON over the limits above."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            await error_response(self._too_large(), scope)(scope, receive, send)
            return
        # What is no upload may be JSON, whatever it says it is, as one of several types too.
        kinds = [value for name, value in scope["headers"] if name == b"content-type"]
        is_upload = kinds and all(kind.lower().startswith(b"multipart/") for kind in kinds)
        meter = None if is_upload else JsonMeter()
        num_bytes = 0

        async def measured() -> Message:
            nonlocal num_bytes
            message = await receive()
            if data := message.get("body"):
                num_bytes += len(data)
                # Whoever reads the body lets these through, to the handlers of errors.
                if num_bytes > self._max_bytes:
                    raise self._too_large()
                if meter is not None:
                    meter.add(data)
            return message

        await self._app(scope, measured, send)

    def _too_large(self) -> RefusedError:
        return RefusedError(
            413,
            f"the request body has more than {self._max_bytes / 2**20:g} MiB (--max-body-mib)",
            "request_too_large",
        )


# What is left of a string whose beginning was in an earlier piece, and whole strings. Possessive:
# nothing is tried twice, so the time is linear.
_REST_OF_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+"', re.DOTALL)
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_OPENING = frozenset(b"[{")


class JsonMeter:
    """Counts the values and the depth of a JSON text that comes in pieces, without parsing it.

    A text that is no JSON is counted somehow: the parser, which stops where it goes wrong, has not
    seen more than was counted by then.
    """

    def __init__(
        self,
        *,
        max_depth: int = MAX_JSON_DEPTH,
        max_values: int = MAX_JSON_VALUES,
        max_members: int = MAX_JSON_MEMBERS,
    ) -> None:
        self._max_depth = max_depth
        self._max_values = max_values
        self._max_members = max_members
        self._in_string = False
        self._is_escaped = False
        """The last byte was a backslash that escapes what comes next."""
        self._depth = 0
        self._num_values = 0
        self._num_members = 0

    def add(self, data: bytes) -> None:
        """RefusedError: with this piece, the text is over a limit, or not in UTF-8."""
        if 0 in data:
            # The parser would take UTF-16 and UTF-32, in which quotes are not where bytes say.
            raise _bad("it has a NUL byte: send UTF-8")
        if self._in_string:
            rest = self._after_string(data)
            if rest is None:
                return
            data = rest
        # The quote makes a whole string of one that goes on. Without it, each quote in that string
        # would be tried as the beginning of one, to the end.
        is_escaped = _ends_escaped(data)
        outside = _STRING.sub(b"", data + (b'\\"' if is_escaped else b'"'))
        self._in_string = not outside.endswith(b'"')
        self._is_escaped = self._in_string and is_escaped
        self._count(outside)

    def _after_string(self, data: bytes) -> bytes | None:
        """None: the string goes on."""
        begin = 1 if self._is_escaped else 0
        match = _REST_OF_STRING.match(data, begin)
        self._in_string = match is None
        self._is_escaped = match is None and _ends_escaped(data[begin:])
        return None if match is None else data[match.end() :]

    def _count(self, outside: bytes) -> None:
        brackets = outside.translate(None, _NO_BRACKETS)
        num_objects = brackets.count(b"{")
        self._num_members += num_objects + outside.count(b":")
        self._num_values += num_objects + brackets.count(b"[") + outside.count(b",")
        if self._num_members > self._max_members:
            raise _bad(f"it has more than {self._max_members} objects and keys")
        if self._num_values > self._max_values:
            raise _bad(f"it has more than {self._max_values} values")
        for bracket in brackets:
            self._depth += 1 if bracket in _OPENING else -1
            if self._depth > self._max_depth:
                raise _bad(f"it is nested more than {self._max_depth} deep")
            if self._depth < 0:
                raise _bad("it closes what was not opened")


def _ends_escaped(data: bytes) -> bool:
    """Whether its last byte is a backslash that escapes what comes next."""
    return (len(data) - len(data.rstrip(b"\\"))) % 2 == 1


def _bad(reason: str) -> RefusedError:
    return RefusedError(400, f"the request body cannot be read: {reason}", "invalid_body")
