"""Every failure of a request as OpenAI's clients expect it: {"error": {message, type, ...}}.

The same body goes out as an HTTP answer and, once a stream has begun, as an event of the stream.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mimo_engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineUnavailableError,
    MimoError,
    QueueFullError,
    RequestError,
)

__all__ = ["ModelNotFoundError", "add_error_handlers", "error_body"]


class ModelNotFoundError(RequestError):
    """The request names a model that this server does not have; HTTP 404."""

    def __init__(self, name: str, served: str) -> None:
        super().__init__(
            f"The model `{name}` does not exist; this server has `{served}`.", param="model"
        )


@dataclass(frozen=True, slots=True)
class _Problem:
    status: int
    message: str
    type: str
    param: str | None = None
    code: str | None = None


def error_body(error: Exception) -> dict[str, Any]:
    """What goes over the wire for `error`, in an answer or in a stream."""
    return _body(_problem(error))


def add_error_handlers(app: FastAPI) -> None:
    async def handle(_request: Request, error: Exception) -> Response:
        problem = _problem(error)
        return Response(
            msgspec.json.encode(_body(problem)),
            status_code=problem.status,
            media_type="application/json",
            headers=getattr(error, "headers", None),
        )

    async def handle_disconnect(_request: Request, _error: Exception) -> Response:
        # Nobody reads it; 499 is what proxies log for a client that left.
        return Response(status_code=499)

    for kind in (MimoError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, handle)
    app.add_exception_handler(ClientDisconnect, handle_disconnect)


def _body(problem: _Problem) -> dict[str, Any]:
    # A field's name may come from the request, which may hold half of a surrogate pair.
    param = problem.param and problem.param.encode(errors="replace").decode()
    return {
        "error": {
            "message": problem.message.encode(errors="replace").decode(),
            "type": problem.type,
            "param": param,
            "code": problem.code,
        }
    }


def _problem(error: Exception) -> _Problem:
    bad, ours = "invalid_request_error", "server_error"
    match error:
        case RequestValidationError():
            return _validation_problem(error)
        case ModelNotFoundError():
            return _Problem(404, str(error), bad, error.param, "model_not_found")
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
            return _Problem(error.status_code, str(error.detail), bad)
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
