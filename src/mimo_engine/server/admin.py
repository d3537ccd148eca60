"""Routes about the server and its model: models, health, metrics, and text to tokens and back."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST

from mimo_engine.errors import EngineUnavailableError
from mimo_engine.server.chat_schemas import TokenizeRequest
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.objects import ModelCard
from mimo_engine.server.schemas import DetokenizeRequest
from mimo_engine.server.stream import json_response
from mimo_engine.server.turn import conversation_prompt

__all__ = ["admin_router"]


def admin_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [_card(context)]})

    # A model may bear the name of a hub repository, with its slash.
    @router.get("/v1/models/{name:path}")
    async def get_model(name: str) -> Response:
        context.check_model(name)
        return json_response(_card(context))

    @router.head("/ping", include_in_schema=False)
    @router.head("/health", include_in_schema=False)
    @router.get("/ping")
    @router.get("/health")
    async def health() -> Response:
        if context.client.trouble is not None:
            raise EngineUnavailableError(context.client.trouble)
        return json_response({"status": "ok"})

    @router.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        return Response(context.metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.post("/tokenize")
    @router.post("/v1/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        context.check_model(body.model)
        tokens = await _tokenize(body, context)
        return json_response(
            {
                "tokens": tokens,
                "count": len(tokens),
                "max_model_len": context.client.info.max_model_len,
            }
        )

    @router.post("/detokenize")
    @router.post("/v1/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        context.check_model(body.model)
        text = await asyncio.to_thread(
            context.tokenizer.decode, body.tokens, skip_special_tokens=body.skip_special_tokens
        )
        return json_response({"text": text})

    return router


def _card(context: ServerContext) -> ModelCard:
    return ModelCard(
        id=context.model_name,
        created=context.created,
        max_model_len=context.client.info.max_model_len,
    )


async def _tokenize(body: TokenizeRequest, context: ServerContext) -> list[int]:
    if body.prompt is None:
        return (await conversation_prompt(body, context)).token_ids
    return await asyncio.to_thread(
        context.tokenizer.encode,
        body.prompt,
        add_special_tokens=body.add_special_tokens,
        max_tokens=context.client.info.max_model_len,
    )
