"""Server-sent events, and the end of all work for a client that has gone."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from typing import Any, TypeVar

import msgspec
from fastapi import Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from mimo_engine.errors import MimoError
from mimo_engine.server.errors import error_body
from mimo_engine.utils.logging import describe_failure

__all__ = [
    "drained",
    "json_response",
    "json_response_of",
    "stream_events",
    "while_connected",
]

T = TypeVar("T")

logger = logging.getLogger(__name__)


def json_response(content: Any) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")


async def json_response_of(make: Callable[[], Any]) -> Response:
    """What `make` returns, made and encoded off the event loop: log-probabilities of a long text
    are many megabytes."""
    return await asyncio.to_thread(lambda: json_response(make()))


async def while_connected(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`. ClientDisconnect, and `work` is cancelled, once the client has gone.

    The body of the request must have been read: what `receive` says next is that it left.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_until_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)
        # A failed task holds its exception, whose traceback holds this frame: a circle, and all
        # that the frames below hold (a video's features, say) would wait for the collector.
        del task


async def drained(updates: AsyncGenerator[object]) -> None:
    """Run `updates` to their end: what they add up to is known elsewhere."""
    async with aclosing(updates):
        async for _ in updates:
            pass


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def stream_events(
    request: Request, chunks: AsyncGenerator[msgspec.Struct], *, named: bool = False
) -> Response:
    """`chunks` as an event stream. It begins with the first of them, so that a request that fails
    before is answered with an ordinary HTTP status.

    `named`: events have their struct's tag as their name, and the last of them is the end; without
    it they have no names, and [DONE] is the end.
    """
    first = await while_connected(request.receive, anext(chunks))
    return EventStream(_events(first, chunks, request.scope, named))


async def _events(
    first: msgspec.Struct, chunks: AsyncGenerator[msgspec.Struct], scope: Scope, named: bool
) -> AsyncGenerator[bytes]:
    async with aclosing(chunks):
        yield _event(first, named)
        try:
            async for chunk in chunks:
                yield _event(chunk, named)
        except Exception as error:
            if not isinstance(error, MimoError):
                logger.error("a stream failed: %s", describe_failure(error))
            data = _data(error_body(error, scope))
            yield b"event: error\n" + data if named else data
    if not named:
        yield b"data: [DONE]\n\n"


def _event(chunk: msgspec.Struct, named: bool) -> bytes:
    if not named:
        return _data(chunk)
    return f"event: {chunk.__struct_config__.tag}\n".encode() + _data(chunk)


def _data(content: Any) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


class EventStream(Response):
    """Sends events as they come, and closes their generator when the client leaves."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes]) -> None:
        self.status_code = 200
        self.background = None
        self._events = events
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._events):
            with suppress(ClientDisconnect):
                await while_connected(receive, self._send(send))

    async def _send(self, send: Send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for event in self._events:
            await send({"type": "http.response.body", "body": event, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
