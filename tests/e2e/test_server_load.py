"""The server under load, with clients that leave and an engine that is killed."""

import asyncio
import os
import signal
import time

import openai
import pytest
from fake_server import MODEL, FakeServer, until

from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.engine.client import RestartPolicy

LIMITS = SchedulerConfig(max_num_seqs=32, max_queue_len=100, max_model_len=30_000)
STEP_S = 0.002
ENDLESS = {"ignore_eos": True}
LONG = 20_000
"""Tokens: they take 40 s, so that nothing ends by itself while a process is stalled."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    with FakeServer(directory, scheduler=LIMITS, step_s=STEP_S) as server:
        yield server


def pages_in_use(server):
    return server.metric('mimo_engine_kv_pages_used{group="full"}')


def num_aborts(server):
    return server.metric("mimo_engine_preemptions_total")


async def streamed_text(client, prompt, **kwargs):
    stream = await client.completions.create(model=MODEL, prompt=prompt, stream=True, **kwargs)
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_64_streams_at_once_each_get_their_own_text_while_16_others_leave(server):
    words = "the river was higher than it had been for many years so they said".split()  # noqa: SIM905
    prompts = [" ".join(words[i % 7 : i % 7 + 2 + i % 9]) + f" {i}" for i in range(64)]

    async def leave(client, i):
        stream = await client.completions.create(
            model=MODEL, prompt=f"leaver {i}", stream=True, max_tokens=LONG, extra_body=ENDLESS
        )
        async with stream:
            async for _ in stream:
                return

    async def main():
        async with server.async_openai() as client:
            return await asyncio.gather(
                *(
                    streamed_text(client, prompt, max_tokens=20 + i)
                    for i, prompt in enumerate(prompts)
                ),
                *(leave(client, i) for i in range(16)),
            )

    aborts = num_aborts(server)
    texts = asyncio.run(main())
    expected = [server.answer(prompt, max_tokens=20 + i) for i, prompt in enumerate(prompts)]
    assert texts[:64] == expected
    # First of all: before the engine's first report no pages are in use either.
    until(lambda: num_aborts(server) == aborts + 16)
    until(lambda: pages_in_use(server) == 0)


def test_a_client_that_leaves_before_its_plain_answer_aborts_it(server):
    aborts = num_aborts(server)
    body = {"prompt": "a b c", "max_tokens": LONG, "n": 3, **ENDLESS}
    with server.asked("/v1/completions", body):
        until(lambda: server.metric("mimo_engine_requests_running") == 3)
    until(lambda: num_aborts(server) == aborts + 3)
    until(lambda: pages_in_use(server) == 0)
    assert server.metric('mimo_engine_requests_total{finish_reason="abort"}') >= 3


def test_a_client_that_leaves_while_it_waits_in_the_queue_aborts_its_request(server):
    aborts = num_aborts(server)
    body = {"prompt": "a b c", "max_tokens": LONG, "n": 32, **ENDLESS}
    with server.begun_stream("/v1/completions", body):
        with server.asked("/v1/completions", {**body, "n": 1}):
            until(lambda: server.metric("mimo_engine_requests_waiting") == 1)
        until(lambda: num_aborts(server) == aborts + 1)
        assert server.metric("mimo_engine_requests_waiting") == 0
    until(lambda: pages_in_use(server) == 0)


def test_a_full_queue_is_a_503(server):
    body = {"prompt": "a b c", "max_tokens": LONG, "n": 128, **ENDLESS}
    with server.begun_stream("/v1/completions", body):
        response = server.post("/v1/completions", body)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_full"
    until(lambda: pages_in_use(server) == 0)


@pytest.mark.parametrize("limit_s", [20, pytest.param(2, marks=pytest.mark.prove)])
def test_killing_the_engine_fails_what_is_in_flight_at_once_and_it_comes_back(tmp_path, limit_s):
    hold = tmp_path / "hold"
    with FakeServer(tmp_path, scheduler=LIMITS, step_s=STEP_S, held_by=hold) as server:
        hold.touch()
        ends = asyncio.run(ends_after_kill(server, server.engine.engine_pid))
        assert max(seconds for seconds, _ in ends) < limit_s
        for _, error in ends[:24]:
            # In a stream the status has been sent; the error is an event of it.
            assert type(error) is openai.APIError
            assert error.code == "engine_dead"
        for _, error in ends[24:]:
            assert isinstance(error, openai.InternalServerError)
            assert error.status_code == 500
            assert error.code == "engine_dead"
        health = server.get("/health")
        assert health.status_code == 503
        assert "started again" in health.json()["error"]["message"]
        assert server.metric("mimo_engine_engine_up") == 0
        refused = server.post("/v1/completions", {"prompt": "a"})
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "engine_unavailable"
        hold.unlink()
        until(lambda: server.get("/health").status_code == 200)
        assert server.metric("mimo_engine_engine_restarts_total") == 1
        assert server.metric('mimo_engine_requests_total{finish_reason="error"}') == 33
        result = server.post("/v1/completions", {"prompt": "one two"}).json()
        assert result["choices"][0]["text"] == "one two"


async def ends_after_kill(server, pid):
    """24 streams and 8 plain requests; the engine is killed once all of them run. For each the
    seconds from the kill to its end, and its exception."""
    killed_at = None

    async def one(client, stream):
        try:
            result = await client.completions.create(
                model=MODEL, prompt="a b c", max_tokens=LONG, stream=stream, extra_body=ENDLESS
            )
            await anext(aiter(result))
            begun.release()
            async for _ in result:
                pass
        except openai.APIError as error:
            return time.monotonic() - killed_at, error

    begun = asyncio.Semaphore(0)
    async with server.async_openai() as client:
        tasks = [asyncio.create_task(one(client, i < 24)) for i in range(32)]
        async with asyncio.timeout(60):
            for _ in range(24):
                await begun.acquire()
            while server.engine.stats.num_running < 32:
                await asyncio.sleep(0.01)
        killed_at = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        return await asyncio.gather(*tasks)


def test_an_engine_that_keeps_dying_shows_in_health(tmp_path):
    policy = RestartPolicy(max_quick_deaths=1)
    with FakeServer(tmp_path, restart_policy=policy) as server:
        response = server.post("/v1/completions", {"prompt": "a", "seed": 13})
        assert response.status_code == 500
        # The type alone: a message may quote what another client sent.
        message = response.json()["error"]["message"]
        assert message == "the engine process ended: ArithmeticError; the server's log says more"
        until(lambda: "not started again" in server.get("/health").text)
        assert server.get("/health").status_code == 503
