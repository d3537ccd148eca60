"""The client against a scripted server: what is asked again, what fails, and what it says then."""

import asyncio
import json
from contextlib import aclosing

import httpx
import pytest

from mimo_engine.errors import ConfigError
from mimo_engine.eval.api import Failure, Reply, chat_request, completion_request, read_reply
from mimo_engine.eval.client import RETRY_WAITS_S, ApiClient

CHAT = chat_request([{"role": "user", "content": "Hello"}], max_tokens=9, thinks=True)
COMPLETION = completion_request("Hello", max_tokens=9, stop=("\n",))
ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1},
}
BUSY = httpx.Response(503, json={"error": {"message": "the queue is full"}})


def ask(*answers, request=CHAT, url="http://engine:8000", timeout_s=60.0):
    """What becomes of the request, the requests that were made, and the waits between them.

    answers: responses, or exceptions; the last one is given to all that follow.
    """
    made, waits = [], []

    async def handle(sent):
        answer = answers[min(len(made), len(answers) - 1)]
        made.append(sent)
        if isinstance(answer, Exception):
            raise answer
        return await answer() if callable(answer) else answer

    async def wait(seconds):
        waits.append(seconds)

    async def main():
        transport = httpx.MockTransport(handle)
        async with aclosing(
            ApiClient(url, timeout_s=timeout_s, transport=transport, sleep=wait)
        ) as client:
            return await client.ask("the-model", request)

    return asyncio.run(main()), made, waits


def test_a_key_goes_along():
    async def main():
        transport = httpx.MockTransport(lambda sent: httpx.Response(200, json=shown(sent)))
        async with aclosing(
            ApiClient("http://e", timeout_s=9, api_key="k", transport=transport)
        ) as client:
            return await client.served_models()

    def shown(sent):
        return {"data": [{"id": sent.headers["authorization"]}]}

    assert asyncio.run(main()) == ["Bearer k"]


@pytest.mark.parametrize(
    "url", ["http://engine:8000", "http://engine:8000/", "http://engine:8000/v1"]
)
def test_a_request_goes_out_with_the_models_name(url):
    found, (sent,), _ = ask(httpx.Response(200, json=ANSWER), url=url)
    assert str(sent.url) == "http://engine:8000/v1/chat/completions"
    assert json.loads(sent.content) == {"model": "the-model", **CHAT.body}
    assert found == Reply(
        message={"role": "assistant", "content": "Hi"},
        finish_reason="stop",
        num_prompt_tokens=3,
        num_completion_tokens=1,
    )


def test_a_completions_text_is_its_content():
    payload = {"choices": [{"text": " Hi", "finish_reason": "length"}]}
    found, (sent,), _ = ask(httpx.Response(200, json=payload), request=COMPLETION)
    assert sent.url.path == "/v1/completions"
    assert found.message == {"content": " Hi"}
    assert found.is_cut
    assert found.num_prompt_tokens is None


def test_a_full_queue_is_asked_again_after_growing_waits():
    found, made, waits = ask(BUSY, BUSY, BUSY, httpx.Response(200, json=ANSWER))
    assert found.text == "Hi"
    assert len(made) == 4
    assert waits == list(RETRY_WAITS_S[:3])
    assert waits == sorted(waits)


def test_a_queue_that_stays_full_is_given_up():
    found, made, waits = ask(BUSY)
    assert found == Failure(reason="HTTP 503: the queue is full")
    assert len(made) == len(RETRY_WAITS_S) + 1
    assert waits == list(RETRY_WAITS_S)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (httpx.Response(400, json={"error": {"message": "too\nlong"}}), "HTTP 400: too long"),
        (httpx.Response(500, text="Oops"), "HTTP 500: without a reason"),
        (httpx.Response(429, json=[1]), "HTTP 429: without a reason"),
        (httpx.Response(200, text="<html>"), "the server's answer is not JSON"),
        (httpx.Response(200, text="[" * 100_000), "the server's answer is not JSON"),
        (httpx.Response(200, text="null"), "the server's answer is not JSON"),
        (httpx.Response(200, json={"choices": []}), "the server's answer has no choices"),
        (httpx.Response(200, json=[ANSWER]), "the server's answer has no choices"),
        (httpx.Response(200, json={"choices": ["x"]}), "the server's answer has no choices"),
        (httpx.Response(200, json={"choices": [{"message": 3}]}), "a message that is no object"),
        (httpx.ConnectError("refused"), "ConnectError: refused"),
        (httpx.ReadError(""), "ReadError:"),
        (httpx.RemoteProtocolError("left"), "RemoteProtocolError: left"),
    ],
)
def test_any_other_failure_is_one_line_and_is_not_asked_again(answer, reason):
    found, made, waits = ask(answer)
    assert isinstance(found, Failure)
    assert reason in found.reason
    assert "\n" not in found.reason
    assert (len(made), waits) == (1, [])


def test_an_answer_that_does_not_come_is_a_failure():
    async def never():
        await asyncio.Event().wait()

    found, _, _ = ask(never, timeout_s=0.01)
    assert found == Failure(reason="no whole answer after 0.01 s")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("plain ", "plain"),
        ("<think>so</think>\n\nyes", "yes"),
        ("so</think> yes", "yes"),
        ("<think>so", ""),
        (" \n<think>so", ""),
        ("<think>so</think>", ""),
        ("a <think> b", "a <think> b"),
        (None, ""),
        (7, ""),
    ],
)
def test_the_text_of_a_reply_is_without_its_thought(content, text):
    found = read_reply("/v1/chat/completions", {"choices": [{"message": {"content": content}}]})
    assert found.text == text


def models(answer):
    async def main():
        transport = httpx.MockTransport(lambda _: answer)
        async with aclosing(
            ApiClient("http://engine:8000", timeout_s=9, transport=transport)
        ) as client:
            return await client.served_models()

    return asyncio.run(main())


def test_the_servers_models_are_listed():
    assert models(httpx.Response(200, json={"data": [{"id": "a"}, {"id": "b"}]})) == ["a", "b"]


@pytest.mark.parametrize("payload", [{}, {"data": 3}, {"data": [{}]}, [], 7])
def test_what_lists_no_models_is_no_server_to_be_asked(payload):
    with pytest.raises(ConfigError, match="/v1/models is no list of models: check --url"):
        models(httpx.Response(200, json=payload))


def test_a_server_that_is_not_there_says_how_to_start_one():
    with pytest.raises(ConfigError, match=r"no OpenAI-compatible server .*`mimo-engine serve`"):
        models(httpx.Response(404, text="not here"))
