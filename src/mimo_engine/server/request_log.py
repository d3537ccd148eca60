"""What the server logs of requests: failures of its own always, requests themselves when asked.

What must hold: unless `--log-requests` was given, no text of a request or an answer is in the log,
whatever goes wrong. Nothing that a client sends is logged without escapes: it could write lines.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mimo_engine.chat.detokenize import OutputText
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.server.errors import error_response
from mimo_engine.utils.logging import describe_failure

__all__ = ["Failures", "RequestLog", "log_generation"]

MAX_PROMPT_CHARS = 10_000
"""Of a prompt in the log: media are thousands of marks."""

logger = logging.getLogger(__name__)


class Failures:
    """Exceptions that nobody expected end here: a 500 for the client, their frames in the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        has_started = False

        async def watched(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            logger.error("%s failed: %s", _shown(scope), describe_failure(error))
            # An answer that has begun stays without its end, which closes the connection.
            if not has_started:
                await error_response(error, scope)(scope, receive, send)


class RequestLog:
    """A line for every HTTP request, when it has ended."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()
        status = 0

        async def watched(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seconds = time.monotonic() - begin
            logger.info("%s: status %d, %.3f s", _shown(scope), status, seconds)


def log_generation(
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    output: OutputText,
    *,
    reason: str,
    seconds: float,
    first_token_s: float | None,
) -> None:
    """A line for a request to the engine: its tokens, times and prompt.

    reason: why it ended. first_token_s: from its beginning; None: there was no token.
    """
    # The model may have rows without a token, and ids of those may be sent.
    known = [token_id for token_id in prompt if token_id < tokenizer.num_tokens]
    text = tokenizer.decode(known, skip_special_tokens=False)
    cut = "" if len(text) <= MAX_PROMPT_CHARS else f"... ({len(text)} characters)"
    logger.info(
        "generated: %d prompt tokens (%d cached), %d output tokens, first token after %s, "
        "%.3f s, ended by %s; prompt: %r%s",
        len(prompt),
        output.num_cached_tokens,
        len(output.token_ids),
        "-" if first_token_s is None else f"{first_token_s:.3f} s",
        seconds,
        reason,
        text[:MAX_PROMPT_CHARS],
        cut,
    )


def _shown(scope: Scope) -> str:
    return f"{scope['method']} {scope['path'][:200]!a}"
