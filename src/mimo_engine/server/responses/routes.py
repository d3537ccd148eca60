"""OpenAI's Responses API: turns (turn.py) as items and named events, kept by their ids."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response

from mimo_engine.errors import RequestError
from mimo_engine.server.errors import CodedError
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.responses.input_items import items_before, listed
from mimo_engine.server.responses.run import ResponseRun
from mimo_engine.server.responses.schemas import ResponsesRequest
from mimo_engine.server.responses.store import KeptResponse, ResponseStore
from mimo_engine.server.stream import json_response, stream_events, while_connected

__all__ = ["responses_router"]


def responses_router(context: ServerContext) -> APIRouter:
    router = APIRouter()
    config = context.config.responses
    store = ResponseStore(config.response_store, config.response_store_mib * 2**20)

    @router.post("/v1/responses")
    async def create(body: ResponsesRequest, request: Request) -> Response:
        run = await ResponseRun.start(body, context, store, request.receive)
        if body.stream:
            return await stream_events(request, run.events(), named=True)
        return _json(await while_connected(request.receive, run.whole()))

    # They would be a 405 otherwise, as names of responses.
    for name in ("input_tokens", "compact"):
        path = f"/v1/responses/{name}"
        router.add_api_route(path, _not_served, methods=["POST"], include_in_schema=False)

    @router.get("/v1/responses/{response_id}")
    async def retrieve(response_id: str, request: Request) -> Response:
        for name, value in request.query_params.items():
            if (name, value) != ("stream", "false"):
                raise RequestError(
                    f"{name}={value:.80} is not served: a response is returned as it was sent, "
                    "and not streamed again",
                    param=name.removesuffix("[]"),
                )
        return _json(_kept(store, response_id).response)

    @router.delete("/v1/responses/{response_id}")
    async def delete(response_id: str) -> Response:
        store.remove(_kept(store, response_id))
        return json_response({"id": response_id, "object": "response", "deleted": True})

    @router.get("/v1/responses/{response_id}/input_items")
    async def list_input_items(
        request: Request,
        response_id: str,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        order: Literal["asc", "desc"] = "desc",
        after: str | None = None,
    ) -> Response:
        for name in request.query_params:
            if name not in ("limit", "order", "after"):
                raise RequestError(
                    f"{name} is not served: limit, order and after are",
                    param=name.removesuffix("[]"),
                )
        items = items_before(_kept(store, response_id))
        return json_response(listed(items, limit=limit, order=order, after=after))

    @router.post("/v1/responses/{response_id}/cancel")
    async def cancel(response_id: str) -> Response:
        _kept(store, response_id)
        raise RequestError(
            "Cannot cancel a synchronous response: this one has ended. Closing the connection is "
            "what cancels one that has not."
        )

    return router


async def _not_served(request: Request) -> Response:
    raise CodedError(
        f"POST {request.url.path} is not served: POST /v1/messages/count_tokens and /tokenize "
        "count tokens; send fewer items to shorten a conversation",
        status=404,
    )


def _json(content: bytes) -> Response:
    return Response(content, media_type="application/json")


def _kept(store: ResponseStore, response_id: str) -> KeptResponse:
    kept = store.find(response_id)
    if kept is None:
        raise CodedError(
            f"Response with id {response_id!r:.80} not found: this server keeps responses while "
            "there is room (--response-store, --response-store-mib), and none whose store was "
            "false",
            status=404,
        )
    return kept
