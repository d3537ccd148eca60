"""Every failure of a request in the shape that clients of its endpoint expect.

OpenAI's is {"error": {message, type, param, code}}. Paths under /v1/messages are Anthropic's:
{"type": "error", "error": {type, message}, "request_id"}, with details.error_code where there is a
code. The same body goes out as an HTTP answer and, once a stream has begun, as an event of the
stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import Scope

from mimo_engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineUnavailableError,
    MimoError,
    QueueFullError,
    RequestError,
)

__all__ = [
    "OVERLOADED",
    "CodedError",
    "RefusedError",
    "add_error_handlers",
    "error_body",
    "error_response",
    "is_anthropic",
    "openai_error",
    "request_id",
]

MAX_MESSAGE_CHARS = 2000
"""An error may quote the request, which may be long; its end says what to do."""

OVERLOADED = 529
"""Anthropic's status of a full queue."""

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    OVERLOADED: "overloaded_error",
}
"""By status; of the others by their hundreds."""


class CodedError(RequestError):
    """A RequestError with a status or a code of its own."""

    def __init__(
        self, message: str, *, param: str | None = None, status: int = 400, code: str | None = None
    ) -> None:
        super().__init__(message, param=param)
        self.status = status
        self.code = code


class RefusedError(HTTPException):
    """A request that is refused for what it is, whatever endpoint it is for."""

    def __init__(
        self, status: int, message: str, code: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code


@dataclass(frozen=True, slots=True)
class _Problem:
    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None


def is_anthropic(path: str) -> bool:
    """Whether the endpoint at `path` speaks Anthropic's API."""
    return path == "/v1/messages" or path.startswith("/v1/messages/")


def request_id(scope: Scope) -> str:
    """The name of a request in headers and errors of Anthropic's API."""
    return scope.setdefault("state", {}).setdefault("request_id", f"req_{uuid4().hex}")


def openai_error(error: Exception) -> dict[str, Any]:
    """`error` as OpenAI's clients know it: message, type, param and code."""
    problem = _problem(error)
    return {
        "message": _sendable(problem.message),
        "type": problem.type,
        "param": problem.param and _sendable(problem.param),
        "code": problem.code,
    }


def error_body(error: Exception, scope: Scope) -> dict[str, Any]:
    """What goes over the wire for `error`, whole or in a stream, in answer to the request in
    `scope`."""
    if not is_anthropic(scope["path"]):
        return {"error": openai_error(error)}
    status, problem = _status(error, scope), _problem(error)
    kind = "api_error" if status >= 500 else "invalid_request_error"
    kind = _ANTHROPIC_TYPES.get(status, kind)
    content: dict[str, Any] = {"type": kind, "message": _sendable(problem.message)}
    if problem.code is not None:
        content["details"] = {"error_code": problem.code}
    return {"type": "error", "error": content, "request_id": request_id(scope)}


def error_response(error: Exception, scope: Scope) -> Response:
    headers = dict(getattr(error, "headers", None) or {})
    if is_anthropic(scope["path"]):
        headers["request-id"] = request_id(scope)
    return Response(
        msgspec.json.encode(error_body(error, scope)),
        status_code=_status(error, scope),
        media_type="application/json",
        headers=headers,
    )


def add_error_handlers(app: FastAPI) -> None:
    async def handle(request: Request, error: Exception) -> Response:
        return error_response(error, request.scope)

    async def handle_disconnect(_request: Request, _error: Exception) -> Response:
        # Nobody reads it; 499 is what proxies log for a client that left.
        return Response(status_code=499)

    for kind in (MimoError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)


def _status(error: Exception, scope: Scope) -> int:
    is_overload = isinstance(error, QueueFullError) and is_anthropic(scope["path"])
    return OVERLOADED if is_overload else _problem(error).status


def _sendable(text: str) -> str:
    """It may come from the request, which may hold half of a surrogate pair."""
    if len(text) > MAX_MESSAGE_CHARS:
        half = MAX_MESSAGE_CHARS // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return text.encode(errors="replace").decode()


def _problem(error: Exception) -> _Problem:
    bad, ours = "invalid_request_error", "server_error"
    match error:
        case RequestValidationError():
            return _validation_problem(error)
        case CodedError():
            return _Problem(error.status, str(error), bad, error.param, error.code)
        case ContextLengthError():
            return _Problem(400, str(error), bad, error.param, "context_length_exceeded")
        case RequestError():
            return _Problem(400, str(error), bad, error.param)
        case QueueFullError():
            return _Problem(503, str(error), ours, code="queue_full")
        case EngineUnavailableError():
            return _Problem(503, str(error), ours, code="engine_unavailable")
        case EngineDeadError():
            return _Problem(500, str(error), ours, code="engine_dead")
        case MimoError():
            return _Problem(500, str(error), ours)
        case HTTPException():
            code = error.code if isinstance(error, RefusedError) else None
            return _Problem(error.status_code, str(error.detail), bad, code=code)
        case _:
            return _Problem(500, "internal error; the server's log says more", ours)


def _validation_problem(error: RequestValidationError) -> _Problem:
    """The first finding: one at a time is what people mend, and unions report one thing often."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, RequestError):
        return _problem(cause)
    # The location begins with "body"; after it, a number is a place in the text or in a list.
    places = [str(part) for part in first["loc"][1:]]
    param = None
    if first["type"] == "json_invalid":
        message = f"the request body is not JSON: {cause} at character {places[0]}"
    elif not places:
        message = "the request body must be a JSON object with content-type: application/json"
    else:
        param = ".".join(places)
        message = f"{param}: {first['msg']}"
    return _Problem(400, message, "invalid_request_error", param)
