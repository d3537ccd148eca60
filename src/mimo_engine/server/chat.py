"""POST /v1/chat/completions: a turn (turn.py) in OpenAI's shapes, whole or as chunks."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.messages import TokenLogprobs
from mimo_engine.server.chat_schemas import ChatRequest
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.objects import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    TopLogprob,
)
from mimo_engine.server.stream import drained, json_response_of, stream_events, while_connected
from mimo_engine.server.turn import Turn

__all__ = ["chat_router"]


def chat_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create(body: ChatRequest, request: Request) -> Response:
        turn = await Turn.start(body, context, request.receive)
        renderer = _Renderer(body, turn, context)
        if body.stream:
            return await stream_events(request, renderer.chunks())
        await while_connected(request.receive, drained(turn.updates()))
        return await json_response_of(renderer.whole)

    return router


class _Renderer:
    """One turn as a whole response or as chunks."""

    def __init__(self, body: ChatRequest, turn: Turn, context: ServerContext) -> None:
        self._body = body
        self._turn = turn
        self._context = context
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())

    def whole(self) -> ChatCompletion:
        turn = self._turn
        choices = [
            ChatChoice(
                index=i,
                message=turn.answers[i].message(),
                logprobs=self._logprobs(turn.outputs[i].logprobs or []),
                **turn.ending(i),
            )
            for i in range(len(turn.answers))
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=choices,
            usage=turn.usage(),
        )

    async def chunks(self) -> AsyncGenerator[ChatChunk]:
        """For each choice: its role, what it says, its end; then the usage, if asked for."""
        async with aclosing(self._turn.updates()) as updates:
            async for update in updates:
                i = update.index
                if update.is_first:
                    delta = Delta(role="assistant", content="")
                    yield self._chunk(ChunkChoice(index=i, delta=delta))
                # The log-probabilities of a step go with the first that it says, or alone.
                logprobs = self._logprobs(update.logprobs)
                deltas = [delta for delta in update.deltas if isinstance(delta, Delta)]
                for delta in deltas or ([Delta()] if update.logprobs else []):
                    yield self._chunk(ChunkChoice(index=i, delta=delta, logprobs=logprobs))
                    logprobs = None
                if update.has_ended:
                    end = ChunkChoice(index=i, delta=Delta(), **self._turn.ending(i))
                    yield self._chunk(end)
        if self._body.include_usage:
            yield self._chunk(None)

    def _chunk(self, choice: ChunkChoice | None) -> ChatChunk:
        """None: the chunk at the end, which has the usage alone."""
        has_usage = choice is None or self._body.usage_in_every_chunk
        absent = None if self._body.include_usage else UNSET
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=[] if choice is None else [choice],
            usage=self._turn.usage() if has_usage else absent,
        )

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        tokenizer = self._context.tokenizer
        return ChatLogprobs([_chat_logprob(entry, tokenizer) for entry in entries])


def _chat_logprob(entry: TokenLogprobs, tokenizer: Tokenizer) -> ChatLogprob:
    own = TopLogprob.of(entry.token_id, entry.logprob, tokenizer)
    top = [TopLogprob.of(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return ChatLogprob(own.token, own.bytes, own.logprob, top)
