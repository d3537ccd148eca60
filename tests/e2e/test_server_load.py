"""The server under load, with clients that leave and an engine that is killed."""

import asyncio
import os
import signal
import time

import httpx
import openai
import pytest
from fake_server import MODEL, FakeServer, until

from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.engine.client import RestartPolicy

LIMITS = SchedulerConfig(max_num_seqs=32, max_queue_len=100)
ENDLESS = {"ignore_eos": True}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory = tmp_path_factory.mktemp("model")
    with FakeServer(directory, scheduler=LIMITS, step_s=0.002) as server:
        yield server


def pages_in_use(server):
    return server.metric('mimo_engine_kv_pages_used{group="full"}')


async def streamed_text(client, prompt, **kwargs):
    stream = await client.completions.create(model=MODEL, prompt=prompt, stream=True, **kwargs)
    return "".join([chunk.choices[0].text async for chunk in stream])


def test_64_streams_at_once_each_get_their_own_text_while_16_others_leave(server):
    words = "the river was higher than it had been for many years so they said".split()  # noqa: SIM905
    prompts = [" ".join(words[i % 7 : i % 7 + 2 + i % 9]) + f" {i}" for i in range(64)]

    async def leave(client, i):
        stream = await client.completions.create(
            model=MODEL, prompt=f"leaver {i}", stream=True, max_tokens=3000, extra_body=ENDLESS
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

    aborts = server.metric("mimo_engine_preemptions_total")
    texts = asyncio.run(main())
    expected = [server.answer(prompt, max_tokens=20 + i) for i, prompt in enumerate(prompts)]
    assert texts[:64] == expected
    until(lambda: pages_in_use(server) == 0)
    assert server.metric("mimo_engine_preemptions_total") == aborts + 16


def test_a_client_that_leaves_before_its_plain_answer_aborts_it(server):
    aborts = server.metric("mimo_engine_preemptions_total")
    body = {"prompt": "a b c", "max_tokens": 4000, "n": 3, **ENDLESS}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{server.url}/v1/completions", json=body, timeout=0.3)
    until(lambda: pages_in_use(server) == 0)
    assert server.metric("mimo_engine_preemptions_total") == aborts + 3
    assert server.metric('mimo_engine_requests_total{finish_reason="abort"}') >= 3


def test_a_client_that_leaves_while_it_waits_in_the_queue_aborts_its_request(server):
    body = {"prompt": "a b c", "max_tokens": 4000, "n": 32, "stream": True, **ENDLESS}
    with server.begun_stream("/v1/completions", body):
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{server.url}/v1/completions", json={**body, "n": 1}, timeout=0.3)
        until(lambda: server.metric("mimo_engine_requests_waiting") == 0)
    until(lambda: pages_in_use(server) == 0)


def test_a_full_queue_is_a_503(server):
    body = {"prompt": "a b c", "max_tokens": 4000, "n": 128, **ENDLESS}
    with server.begun_stream("/v1/completions", body):
        response = server.post("/v1/completions", body)
    assert response.status_code == 503
    assert response.json()["error"]["code"] == "queue_full"
    until(lambda: pages_in_use(server) == 0)


def test_killing_the_engine_fails_what_is_in_flight_within_2_s_and_it_comes_back(tmp_path):
    with FakeServer(tmp_path, step_s=0.002, build_s=0.5) as server:
        pid = server.engine.engine_pid
        ends = asyncio.run(ends_after_kill(server, pid))
        assert max(seconds for seconds, _ in ends) < 2
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
        until(lambda: server.get("/health").status_code == 200)
        assert server.metric("mimo_engine_engine_restarts_total") == 1
        assert server.metric('mimo_engine_requests_total{finish_reason="error"}') == 33
        result = server.post("/v1/completions", {"prompt": "one two"}).json()
        assert result["choices"][0]["text"] == "one two"


async def ends_after_kill(server, pid):
    """24 streams and 8 plain requests; the engine is killed once all streams have begun. For each
    the seconds from the kill to its end, and its exception."""
    begun = asyncio.Semaphore(0)
    killed_at = None

    async def one(client, stream):
        try:
            result = await client.completions.create(
                model=MODEL, prompt="a b c", max_tokens=4000, stream=stream, extra_body=ENDLESS
            )
            async for _ in result:
                begun.release()
        except openai.APIError as error:
            return time.monotonic() - killed_at, error

    async with server.async_openai() as client:
        tasks = [asyncio.create_task(one(client, i < 24)) for i in range(32)]
        for _ in range(200):
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
        assert "seed 13 breaks this engine" in response.json()["error"]["message"]
        until(lambda: "not started again" in server.get("/health").text)
        assert server.get("/health").status_code == 503
