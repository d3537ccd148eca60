"""One request of POST /v1/responses from its checks to its end, whole or as events.

What must hold: the whole response and the last event of a stream are made in one place, of items
whose deltas were the stream; a response is kept when it has ended, and only then.
"""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import msgspec
from starlette.types import Receive

from mimo_engine.errors import MimoError, RequestError
from mimo_engine.server.errors import CodedError, openai_error
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.responses.conversation import Conversation, Item
from mimo_engine.server.responses.input_items import input_items
from mimo_engine.server.responses.objects import (
    ErrorEvent,
    Event,
    IncompleteDetails,
    Response,
    ResponseCompleted,
    ResponseCreated,
    ResponseError,
    ResponseFailed,
    ResponseIncomplete,
    ResponseInProgress,
    ResponseUsage,
)
from mimo_engine.server.responses.open_items import new_id
from mimo_engine.server.responses.output import Output
from mimo_engine.server.responses.schemas import ResponsesRequest
from mimo_engine.server.responses.store import KeptResponse, ResponseStore
from mimo_engine.server.responses.translation import as_chat_request, in_terms_of_responses
from mimo_engine.server.turn import Turn, TurnUpdate
from mimo_engine.utils.logging import describe_failure

__all__ = ["ResponseRun"]

logger = logging.getLogger(__name__)


_INCOMPLETE_REASONS = {"length": "max_output_tokens"}
"""By finish reason; what OpenAI has no name for keeps its own."""


class ResponseRun:
    @classmethod
    async def start(
        cls, body: ResponsesRequest, context: ServerContext, store: ResponseStore, receive: Receive
    ) -> ResponseRun:
        """Check everything; nothing is generated yet. Errors as those of `Turn.start`, in the
        terms of this API."""
        previous = _previous(body, store)
        items = input_items(body.input, store)
        conversation = Conversation(body.instructions)
        _fill(conversation, previous, items)
        keeps = _keeps(body, store)
        response = _opening(body, context, keeps=keeps)
        # What is sent back and kept must be JSON again: better said now than after the answer.
        for name in response.__struct_fields__:
            _as_json(getattr(response, name), name)
        input_json = _as_json(items, "input") if keeps else b""
        chat = as_chat_request(body, conversation)
        with in_terms_of_responses(conversation):
            turn = await Turn.start(chat, context, receive)
        return cls(body, store, turn, conversation, response, previous, input_json)

    def __init__(
        self,
        body: ResponsesRequest,
        store: ResponseStore,
        turn: Turn,
        conversation: Conversation,
        response: Response,
        previous: KeptResponse | None,
        input_json: bytes,
    ) -> None:
        self._store = store
        self._turn = turn
        self._conversation = conversation
        self._response = response
        """As it was when it began."""
        self._previous = previous
        self._input_json = input_json
        self._output = Output(seals_thoughts=body.seals_thoughts)

    async def whole(self) -> bytes:
        """The response as JSON."""
        async with aclosing(self._updates()) as updates:
            async for update in updates:
                self._take(update)
        self._output.finish(is_cut=self._is_cut)
        return msgspec.json.encode(self._ended_response())

    async def events(self) -> AsyncGenerator[Event]:
        """All events, numbered. An error before the first of them is raised."""
        numbers = itertools.count()
        async with aclosing(self._events()) as events:
            async for event in events:
                event.sequence_number = next(numbers)
                yield event

    async def _events(self) -> AsyncGenerator[Event]:
        has_begun = False
        try:
            async with aclosing(self._updates()) as updates:
                async for update in updates:
                    if not has_begun:
                        has_begun = True
                        yield ResponseCreated(response=self._response)
                        yield ResponseInProgress(response=self._response)
                    for event in self._take(update):
                        yield event
            for event in self._output.finish(is_cut=self._is_cut):
                yield event
            response = self._ended_response()
            kind = ResponseCompleted if response.status == "completed" else ResponseIncomplete
            yield kind(response=response)
        except Exception as error:
            if not has_begun:
                raise
            if not isinstance(error, MimoError):
                logger.error("a stream failed: %s", describe_failure(error))
            for event in self._failure(error):
                yield event

    async def _updates(self) -> AsyncGenerator[TurnUpdate]:
        with in_terms_of_responses(self._conversation):
            async with aclosing(self._turn.updates()) as updates:
                async for update in updates:
                    yield update

    def _take(self, update: TurnUpdate) -> list[Event]:
        return [event for delta in update.deltas for event in self._output.take(delta)]

    @property
    def _finish_reason(self) -> str:
        return self._turn.ending(0)["finish_reason"]

    @property
    def _is_cut(self) -> bool:
        return self._finish_reason not in ("stop", "tool_calls")

    def _ended_response(self) -> Response:
        """Kept, if it is to be."""
        reason = self._finish_reason
        details = IncompleteDetails(_INCOMPLETE_REASONS.get(reason, reason))
        response = msgspec.structs.replace(
            self._response,
            status="incomplete" if self._is_cut else "completed",
            completed_at=None if self._is_cut else int(time.time()),
            incomplete_details=details if self._is_cut else None,
            output=self._output.items,
            usage=ResponseUsage.of(self._turn.usage()),
        )
        if not response.store:
            return response
        kept = KeptResponse(
            id=response.id,
            parent=self._previous,
            input=self._input_json,
            response=msgspec.json.encode(response),
            output_ids=[item.id for item in response.output],
        )
        if self._store.add(kept):
            return response
        logger.warning(
            "%s is not kept: its conversation has %d bytes (--response-store-mib)",
            response.id,
            kept.num_bytes_in_all,
        )
        return msgspec.structs.replace(response, store=False)

    def _failure(self, error: Exception) -> list[Event]:
        """What a client that waits for either of two events finds."""
        problem = openai_error(error)
        code = "invalid_prompt" if isinstance(error, RequestError) else "server_error"
        response = msgspec.structs.replace(
            self._response,
            status="failed",
            error=ResponseError(code=code, message=problem["message"]),
            output=self._output.items,
            store=False,
        )
        return [
            ErrorEvent(
                code=problem["code"] or code, message=problem["message"], param=problem["param"]
            ),
            ResponseFailed(response=response),
        ]


def _opening(body: ResponsesRequest, context: ServerContext, *, keeps: bool) -> Response:
    """The response as it begins: what the request asked for, with the values that hold where it
    asked for nothing. `keeps`: it will be stored."""
    reasoning, text, defaults = body.reasoning, body.text, context.defaults
    unsaid = {"description": None, "parameters": None, "strict": None}
    return Response(
        id=new_id("resp"),
        created_at=int(time.time()),
        instructions=body.instructions,
        max_output_tokens=body.max_output_tokens,
        max_tool_calls=body.max_tool_calls,
        metadata=body.metadata or {},
        model=context.model_name,
        parallel_tool_calls=body.parallel_tool_calls is not False,
        previous_response_id=body.previous_response_id,
        prompt_cache_key=body.prompt_cache_key,
        reasoning={
            "effort": reasoning and reasoning.effort,
            "summary": reasoning and reasoning.summary,
        },
        safety_identifier=body.safety_identifier,
        store=keeps,
        temperature=defaults.temperature if body.temperature is None else body.temperature,
        text={"format": (text and text.format) or {"type": "text"}, "verbosity": "medium"},
        tool_choice=body.tool_choice or "auto",
        tools=[{**unsaid, **tool} for tool in body.tools or ()],
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        user=body.user,
    )


def _as_json(content: Any, param: str) -> bytes:
    """RequestError about `param`: text that JSON cannot carry back."""
    try:
        return msgspec.json.encode(content)
    except UnicodeEncodeError:
        raise RequestError(f"{param} holds half of a surrogate pair", param=param) from None


def _previous(body: ResponsesRequest, store: ResponseStore) -> KeptResponse | None:
    response_id = body.previous_response_id
    if response_id is None:
        return None
    kept = store.find(response_id)
    if kept is not None:
        return kept
    if not store.is_on:
        problem = (
            "this server keeps no responses: send the items of earlier turns in input, or start "
            "it with --response-store"
        )
    else:
        problem = (
            f"Previous response with id {response_id!r:.80} not found: responses are kept while "
            "there is room (--response-store, --response-store-mib), unless store was false, they "
            "failed, or the server was started again; send the items of earlier turns in input"
        )
    raise CodedError(problem, param="previous_response_id", code="previous_response_not_found")


def _keeps(body: ResponsesRequest, store: ResponseStore) -> bool:
    if body.store and not store.is_on:
        raise RequestError(
            "this server keeps no responses: leave store out, or start it with --response-store",
            param="store",
        )
    return store.is_on and body.store is not False


def _fill(conversation: Conversation, previous: KeptResponse | None, items: list[Item]) -> None:
    """RequestError: an item that cannot be read, or that is there already."""
    seen: set[str] = set()
    for kept in previous.line() if previous is not None else ():
        place = f"previous_response_id ({kept.id})"
        before, made = kept.input_items(), kept.output_items()
        conversation.add(before, f"{place}.input")
        conversation.add(made, f"{place}.output")
        seen.update(item["id"] for item in (*before, *made))
    for i, item in enumerate(items):
        if item["id"] in seen:
            raise RequestError(
                f"input[{i}]: there is an item with the id {item['id']!r:.80} before it; leave it "
                "out here, or leave out previous_response_id",
                param=f"input[{i}]",
            )
        seen.add(item["id"])
    conversation.add(items, "input")
