"""POST /v1/messages and /v1/messages/count_tokens: a turn (turn.py) in Anthropic's shapes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response

from mimo_engine.server.anthropic.convert import convert, own_names
from mimo_engine.server.anthropic.objects import (
    BlockEvent,
    Event,
    InputTokens,
    Message,
    MessageDelta,
    MessageStart,
    MessageStop,
    OutputTokensDetails,
    Ping,
    Stop,
    StopReason,
    Usage,
)
from mimo_engine.server.anthropic.schemas import CountTokensRequest, MessagesRequest
from mimo_engine.server.anthropic.stream import BlockStream, blocks_of
from mimo_engine.server.errors import request_id
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.stream import json_response, stream_events, while_connected
from mimo_engine.server.turn import Turn, conversation_prompt

__all__ = ["messages_router"]

_STOP_REASONS: Mapping[str | None, StopReason] = {
    "stop": "end_turn",
    "tool_calls": "tool_use",
    "length": "max_tokens",
}


def messages_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/messages")
    async def create(body: MessagesRequest, request: Request) -> Response:
        chat, places = convert(body)
        with own_names(places):
            turn = await Turn.start(chat, context, request.receive, cuts_at_context=True)
        answer = _Answer(body, turn, context)
        if body.stream:
            response = await stream_events(request, answer.events(), named=True)
        else:
            response = json_response(await while_connected(request.receive, answer.whole()))
        return _named(response, request)

    @router.post("/v1/messages/count_tokens")
    async def count_tokens(body: CountTokensRequest, request: Request) -> Response:
        chat, places = convert(body)
        context.check_model(body.model)
        with own_names(places):
            work = conversation_prompt(chat, context)
            prompt = await while_connected(request.receive, work)
        return _named(json_response(InputTokens(len(prompt.token_ids))), request)

    return router


def _named(response: Response, request: Request) -> Response:
    """With the id that Anthropic's clients show for a request."""
    response.headers["request-id"] = request_id(request.scope)
    return response


class _Answer:
    """One turn as a whole message or as events."""

    def __init__(self, body: MessagesRequest, turn: Turn, context: ServerContext) -> None:
        self._max_tokens = body.max_tokens
        self._turn = turn
        self._model = context.model_name
        self._id = f"msg_{uuid4().hex}"
        self._blocks = BlockStream(shows_thinking=body.shows_thinking)

    async def whole(self) -> Message:
        async with aclosing(self._block_events()) as found:
            events = [event async for events in found for event in events]
        stop = self._stop()
        return self._message(
            content=blocks_of(events),
            stop_reason=stop.stop_reason,
            stop_sequence=stop.stop_sequence,
        )

    async def events(self) -> AsyncGenerator[Event]:
        """The message without its content, its blocks one after the other, why it ended."""
        has_begun = False
        async with aclosing(self._block_events()) as found:
            async for events in found:
                if not has_begun:
                    yield MessageStart(self._message(content=[]))
                    yield Ping()
                    has_begun = True
                for event in events:
                    yield event
        yield MessageDelta(self._stop(), self._usage())
        yield MessageStop()

    async def _block_events(self) -> AsyncGenerator[list[BlockEvent]]:
        """Those of each step of the engine, which may be none."""
        async with aclosing(self._turn.updates()) as updates:
            async for update in updates:
                events = [event for delta in update.deltas for event in self._blocks.events(delta)]
                if update.has_ended:
                    events += self._blocks.end()
                yield events

    def _message(self, **fields: Any) -> Message:
        return Message(id=self._id, model=self._model, usage=self._usage(), **fields)

    def _stop(self) -> Stop:
        ending = self._turn.ending(0)
        reason, matched = ending["finish_reason"], ending["matched_stop"]
        if isinstance(matched, str):
            return Stop("stop_sequence", matched)
        if reason == "length" and len(self._turn.outputs[0].token_ids) < self._max_tokens:
            return Stop("model_context_window_exceeded", None)
        # Anything else has cut the answer too.
        return Stop(_STOP_REASONS.get(reason, "max_tokens"), None)

    def _usage(self) -> Usage:
        """So far."""
        usage = self._turn.usage()
        cached_tokens = usage.prompt_tokens_details.cached_tokens
        thinking_tokens = usage.reasoning_tokens
        assert isinstance(thinking_tokens, int)
        return Usage(
            input_tokens=usage.prompt_tokens - cached_tokens,
            cache_read_input_tokens=cached_tokens,
            output_tokens=usage.completion_tokens,
            output_tokens_details=OutputTokensDetails(thinking_tokens),
        )
