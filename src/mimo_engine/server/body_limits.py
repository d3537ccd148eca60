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


class BodyLimits:
    """413 for bodies over `max_bytes`, announced or not; 400 for JSON over the limits above."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > self._max_bytes:
            await error_response(self._too_large(), scope)(scope, receive, send)
            return
        # What is no upload may be JSON, whatever it says it is.
        is_upload = headers.get(b"content-type", b"").lower().startswith(b"multipart/")
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
        self, *, max_depth: int = MAX_JSON_DEPTH, max_values: int = MAX_JSON_VALUES
    ) -> None:
        self._max_depth = max_depth
        self._max_values = max_values
        self._in_string = False
        self._is_escaped = False
        """The last byte was a backslash that escapes what comes next."""
        self._depth = 0
        self._num_values = 0

    def add(self, data: bytes) -> None:
        """RefusedError: with this piece, the text is over a limit, or not in UTF-8."""
        if 0 in data:
            # The parser would take UTF-16 and UTF-32, in which quotes are not where bytes say.
            raise _bad("it has a NUL byte: send UTF-8")
        if self._in_string:
            data = self._after_string(data)
        data = _STRING.sub(b"", data)
        outside, quote, string = data.partition(b'"')
        if quote:
            self._enter_string(string)
        self._count(outside)

    def _after_string(self, data: bytes) -> bytes:
        begin = 1 if self._is_escaped else 0
        match = _REST_OF_STRING.match(data, begin)
        if match is None:
            self._enter_string(data[begin:])
            return b""
        self._in_string = False
        return data[match.end() :]

    def _enter_string(self, data: bytes) -> None:
        """`data`: all that there is of a string so far, or of it since the last piece."""
        self._in_string = True
        num_backslashes = len(data) - len(data.rstrip(b"\\"))
        self._is_escaped = num_backslashes % 2 == 1

    def _count(self, outside: bytes) -> None:
        brackets = outside.translate(None, _NO_BRACKETS)
        num_opening = brackets.count(b"[") + brackets.count(b"{")
        self._num_values += num_opening + outside.count(b",")
        if self._num_values > self._max_values:
            raise _bad(f"it has more than {self._max_values} values")
        for bracket in brackets:
            self._depth += 1 if bracket in _OPENING else -1
            if self._depth > self._max_depth:
                raise _bad(f"it is nested more than {self._max_depth} deep")
            if self._depth < 0:
                raise _bad("it closes what was not opened")


def _bad(reason: str) -> RefusedError:
    return RefusedError(400, f"the request body cannot be read: {reason}", "invalid_body")
