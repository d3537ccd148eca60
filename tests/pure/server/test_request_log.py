"""What goes wrong is logged and answered without a word of the request."""

import asyncio
import logging

import msgspec
import pytest

from mimo_engine.server.request_log import Failures

SECRET = "a secret of mine"


def run(app, path="/v1/chat/completions"):
    """What a client of `app` gets, as messages of ASGI."""
    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(Failures(app)(scope, None, send))
    return sent


async def failing(_scope, _receive, _send):
    try:
        _ = {}[SECRET]
    except KeyError as error:
        raise OSError(28, "No space left", f"/{SECRET}") from error


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", f"/{SECRET}\nfake line"])
def test_an_unexpected_failure_is_a_500_and_frames_in_the_log(path, caplog):
    start, body = run(failing, path)
    assert start["status"] == 500
    error = msgspec.json.decode(body["body"])["error"]
    assert error["type"] == ("api_error" if path == "/v1/messages" else "server_error")
    assert SECRET not in error["message"]
    [record] = caplog.records
    assert record.levelno == logging.ERROR
    text = record.getMessage()
    assert "OSError: No space left" in text
    assert "KeyError\n" in text
    assert "in failing" in text
    assert SECRET not in text.replace(f"/{SECRET}", "", 1)
    assert "\nfake line" not in text


def test_an_answer_that_has_begun_is_left_as_it_is(caplog):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await failing(scope, receive, send)

    [start] = run(app)
    assert start["status"] == 200
    assert len(caplog.records) == 1
