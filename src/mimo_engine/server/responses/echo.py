"""The response as it begins: what the request asked for, with the values that hold where it asked
for nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from mimo_engine.server.generation import ServerContext
from mimo_engine.server.responses.objects import Response
from mimo_engine.server.responses.open_items import new_id
from mimo_engine.server.responses.schemas import ResponsesRequest

__all__ = ["opening"]


def opening(body: ResponsesRequest, context: ServerContext, *, keeps: bool) -> Response:
    """`keeps`: the response will be stored."""
    reasoning, text, defaults = body.reasoning, body.text, context.defaults
    tools = [_shown(tool) for tool in body.tools or ()]
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
        tools=tools,
        top_p=defaults.top_p if body.top_p is None else body.top_p,
        user=body.user,
    )


def _shown(tool: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": None, "parameters": None, "strict": None, **tool}
