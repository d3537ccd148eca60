"""What /openapi.json says beyond what FastAPI finds out: errors, streams, and the answers' schemas.

It is generic over routes: an endpoint is described when it is added, and tests compare what it does
with that.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI

from mimo_engine.server.anthropic.objects import InputTokens, Message
from mimo_engine.server.errors import OVERLOADED, is_anthropic
from mimo_engine.server.objects import ChatCompletion, Completion, ModelCard
from mimo_engine.server.responses.objects import Response
from mimo_engine.server.transcriptions import Transcription

__all__ = ["Api"]

_ANSWERS: Mapping[str, type] = {
    "/v1/audio/transcriptions": Transcription,
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/messages": Message,
    "/v1/messages/count_tokens": InputTokens,
    "/v1/models/{name}": ModelCard,
    "/v1/responses": Response,
}
"""By path. The others' answers are JSON of which no schema is given."""

_ERRORS = {
    "400": "The request is not one that can be served; the message says why.",
    "401": "The server has API keys, and the request none of them.",
    "403": "A browser's request from another site, or to a name that is not this server's.",
    "404": "There is no such model or object.",
    "413": "The request is too large.",
    "500": "The engine or the server failed.",
    "503": "The queue is full, or the engine is not running.",
}
_TEXT = {"type": "string"}
_TEXT_OR_NULL = {"type": ["string", "null"]}


class Api(FastAPI):
    """FastAPI with the whole description of the API."""

    def openapi(self) -> dict[str, Any]:
        if self.openapi_schema is None:
            schema = super().openapi()
            answers, components = msgspec.json.schema_components(
                tuple(_ANSWERS.values()), ref_template="#/components/schemas/{name}"
            )
            own = schema.setdefault("components", {}).setdefault("schemas", {})
            own.update(components, Error=_ERROR, AnthropicError=_ANTHROPIC_ERROR)
            for name in ("HTTPValidationError", "ValidationError"):
                own.pop(name, None)
            schemas = dict(zip(_ANSWERS, answers, strict=True))
            for path, operations in schema["paths"].items():
                for operation in operations.values():
                    _describe(operation, path, schemas.get(path), own)
        assert self.openapi_schema is not None
        return self.openapi_schema


def _describe(
    operation: dict[str, Any],
    path: str,
    answer: Mapping[str, Any] | None,
    components: Mapping[str, Any],
) -> None:
    responses = operation["responses"]
    # FastAPI's own status for bad fields, which is a 400 here.
    responses.pop("422", None)
    name, statuses = "Error", _ERRORS
    if is_anthropic(path):
        name, statuses = "AnthropicError", _ERRORS | {str(OVERLOADED): "The queue is full."}
    error = {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    for status, text in statuses.items():
        responses.setdefault(status, {"description": text, "content": error})
    content = responses.get("200", {}).get("content", {})
    if answer is not None:
        content["application/json"] = {"schema": answer}
    if _may_stream(operation, components):
        # Without a schema: this version of OpenAPI has none for events.
        content["text/event-stream"] = {}


def _may_stream(operation: Mapping[str, Any], components: Mapping[str, Any]) -> bool:
    media_types = operation.get("requestBody", {}).get("content", {}).values()
    # A form's schema stands there itself.
    schemas = [one.get("schema", {}) for one in media_types]
    schemas += [components.get(one.get("$ref", "").rpartition("/")[2], {}) for one in schemas]
    return any("stream" in one.get("properties", {}) for one in schemas)


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


_ERROR = _object(error=_object(message=_TEXT, type=_TEXT, param=_TEXT_OR_NULL, code=_TEXT_OR_NULL))
_ANTHROPIC_ERROR = _object(
    type={"const": "error"}, error=_object(type=_TEXT, message=_TEXT), request_id=_TEXT
)
