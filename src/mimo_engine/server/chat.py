"""POST /v1/chat/completions: the checkpoint's template around the conversation.

Reasoning and tool calls are not separated from the text yet: `content` has their tags.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from mimo_engine.chat.template import normalise_messages
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.errors import RequestError
from mimo_engine.messages import TokenLogprobs
from mimo_engine.server.chat_schemas import ChatRequest, Conversation
from mimo_engine.server.generation import Generation, ServerContext
from mimo_engine.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChatMessage,
    ChunkChoice,
    Delta,
    TopLogprob,
    finite,
)
from mimo_engine.server.stream import json_response, stream_events, while_connected

__all__ = ["chat_router", "conversation_token_ids"]


def chat_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create(body: ChatRequest, request: Request) -> Response:
        context.check_model(body.model)
        prompt = await asyncio.to_thread(conversation_token_ids, body, context)
        generation = Generation(context, [prompt], body.sampling_params(context.defaults))
        renderer = _Renderer(body, generation, context)
        if body.stream:
            return await stream_events(request, renderer.chunks())
        await while_connected(request.receive, generation.run())
        return json_response(renderer.whole())

    return router


def conversation_token_ids(body: Conversation, context: ServerContext) -> list[int]:
    """What the model reads. RequestError: no template, or messages that it cannot render."""
    if context.template is None:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with "
            "--chat-template",
            param="messages",
        )
    messages = normalise_messages(body.messages)
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] != "text":
                raise RequestError(
                    "Model only supports text input; received unsupported content type "
                    f"{part['type']!r}",
                    param="messages",
                )
    text = context.template.render(
        messages,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final_message=bool(body.continue_final_message),
        template_kwargs=body.template_kwargs(),
    )
    return context.tokenizer.encode(text)


class _Renderer:
    """One generation as a whole response or as chunks."""

    def __init__(self, body: ChatRequest, generation: Generation, context: ServerContext) -> None:
        self._body = body
        self._generation = generation
        self._context = context
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())

    def whole(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=i,
                message=ChatMessage(content=output.text),
                logprobs=self._logprobs(output.logprobs or []),
                finish_reason=output.finish_reason,
                matched_stop=output.stop_reason,
            )
            for i, output in enumerate(self._generation.outputs)
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=choices,
            usage=self._generation.usage(),
        )

    async def chunks(self) -> AsyncGenerator[ChatChunk]:
        """For each choice: its role, its text, its end; then the usage, if asked for."""
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                i = update.index
                if update.is_first:
                    delta = Delta(role="assistant", content="")
                    yield self._chunk(ChunkChoice(index=i, delta=delta))
                if update.text or update.logprobs:
                    logprobs = self._logprobs(update.logprobs)
                    delta = Delta(content=update.text)
                    yield self._chunk(ChunkChoice(index=i, delta=delta, logprobs=logprobs))
                output = self._generation.outputs[i]
                if output.finish_reason is not None:
                    end = ChunkChoice(
                        index=i,
                        delta=Delta(),
                        finish_reason=output.finish_reason,
                        matched_stop=output.stop_reason,
                    )
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
            usage=self._generation.usage() if has_usage else absent,
        )

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        tokenizer = self._context.tokenizer
        return ChatLogprobs([_chat_logprob(entry, tokenizer) for entry in entries])


def _chat_logprob(entry: TokenLogprobs, tokenizer: Tokenizer) -> ChatLogprob:
    own = _spelled(entry.token_id, entry.logprob, tokenizer)
    top = [_spelled(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return ChatLogprob(own.token, own.bytes, own.logprob, top)


def _spelled(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    data = tokenizer.token_bytes(token_id)
    text = data.decode("utf-8", errors="replace")
    return TopLogprob(text, list(data), finite(logprob))
