"""The engine process and its client, over a fake engine: no HTTP here."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from fake_engine import BUILD, answer, fake_config

from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.engine.client import AsyncEngineClient, RestartPolicy
from mimo_engine.errors import (
    EngineDeadError,
    EngineUnavailableError,
    QueueFullError,
    RequestError,
)
from mimo_engine.messages import NewRequest

VOCABULARY = {"eos_id": 999, "special_ids": [999], "vocab_size": 1000}
PROMPT = [5, 6, 7, 8]


def request(request_id, prompt=PROMPT, **params):
    params = SamplingParams(**({"max_tokens": 100_000, "ignore_eos": True} | params))
    return NewRequest(request_id=request_id, prompt_token_ids=prompt, params=params)


@asynccontextmanager
async def running_client(*, scheduler=None, restart_policy=None, **options):
    # So long that a request lasts for a stall of the machine.
    scheduler = scheduler or SchedulerConfig(max_model_len=20_000)
    config = fake_config(scheduler=scheduler, **VOCABULARY, **options)
    client = AsyncEngineClient(config, BUILD, restart_policy=restart_policy)
    try:
        await client.start()
        yield client
    finally:
        await client.close()


async def until(condition, timeout_s=60):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_a_group_of_requests_is_one_stream_that_ends_with_the_last_of_them():
    async def main():
        async with running_client() as client:
            ids = {"a": [], "b": []}
            prompts = {"a": [1, 2, 3], "b": [4, 5, 6, 7, 8]}
            group = [request(key, prompts[key], ignore_eos=False) for key in ids]
            with client.submit(group) as stream:
                async for output in stream:
                    ids[output.request_id] += output.token_ids
            assert ids == {
                key: answer(prompts[key], eos_id=999, special_ids=[999]) for key in prompts
            }
            assert client.trouble is None
            assert client.stats.num_running == 0

    asyncio.run(main())


def test_leaving_a_stream_aborts_what_has_not_ended():
    async def main():
        async with running_client(step_s=0.002) as client:
            with client.submit([request("a"), request("b")]) as stream:
                await anext(stream)
                stream.abort("a")
                assert (await anext(stream)).request_id == "b"
            await until(lambda: client.stats.num_preemptions == 2)
            assert client.stats.num_running == client.stats.full_pages_used == 0

    asyncio.run(main())


def test_what_the_engine_refuses_is_raised_as_the_engine_raised_it():
    async def main():
        limits = SchedulerConfig(max_num_seqs=1, max_queue_len=1)
        async with running_client(scheduler=limits, step_s=0.002) as client:
            with client.submit([request("bad", seed=666)]) as stream:
                with pytest.raises(RequestError, match="666") as caught:
                    await anext(stream)
                assert caught.value.param == "seed"
            with client.submit([request(f"{i}") for i in range(2)]):
                with client.submit([request("one too many")]) as stream:
                    with pytest.raises(QueueFullError, match="try again"):
                        await anext(stream)

    asyncio.run(main())


@pytest.mark.parametrize("limit_s", [20, pytest.param(2, marks=pytest.mark.prove)])
def test_sigkill_fails_what_is_in_flight_and_the_engine_comes_back(tmp_path, limit_s):
    hold = tmp_path / "hold"

    async def main():
        async with running_client(step_s=0.002, held_by=str(hold)) as client:
            pid = client.engine_pid
            hold.touch()
            with client.submit([request("a"), request("b")]) as stream:
                await anext(stream)
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(limit_s):
                    with pytest.raises(EngineDeadError, match="ended"):
                        async for _ in stream:
                            pass
            assert "started again" in client.trouble
            with pytest.raises(EngineUnavailableError, match="started again"):
                client.submit([request("c")])
            hold.unlink()
            await until(lambda: client.trouble is None)
            assert client.num_restarts == 1
            assert client.engine_pid != pid
            with client.submit([request("d", ignore_eos=False)]) as stream:
                assert [o.token_ids[0] async for o in stream] == [*PROMPT, 999]

    asyncio.run(main())


def test_an_exception_in_a_step_reaches_every_request_in_flight(capfd):
    async def main():
        async with running_client(step_s=0.002) as client:
            with client.submit([request("a")]) as stream, client.submit([request("b", seed=13)]):
                with pytest.raises(EngineDeadError, match="ArithmeticError; the server's log"):
                    async for _ in stream:
                        pass

    asyncio.run(main())
    # The log has the frames and no message, which may quote a request.
    log = capfd.readouterr().err
    assert "the engine failed: ArithmeticError\n" in log
    assert "in _advance" in log
    assert "ArithmeticError: " not in log


def test_an_engine_that_keeps_dying_is_given_up_with_a_clear_message():
    async def main():
        policy = RestartPolicy(max_quick_deaths=2, first_delay_s=0.01)
        async with running_client(restart_policy=policy) as client:
            for _ in range(2):
                await until(lambda: client.trouble is None)
                with client.submit([request("a", seed=13)]) as stream:
                    with pytest.raises(EngineDeadError):
                        await anext(stream)
            await until(lambda: "not started again" in client.trouble)
            assert "ArithmeticError" in client.trouble
            assert client.num_restarts == 1
            with pytest.raises(EngineUnavailableError, match="not started again"):
                client.submit([request("b")])

    asyncio.run(main())


def test_an_engine_that_cannot_start_says_why():
    async def main():
        with pytest.raises(EngineDeadError, match=r"did not start: no such layer; remove it"):
            async with running_client(build_error="no such layer; remove it"):
                pass

    asyncio.run(main())


def test_closing_a_client_fails_its_requests_and_leaves_no_process():
    async def main():
        async with running_client(step_s=0.002) as client:
            stream = client.submit([request("a")])
            await anext(stream)
            pid = client.engine_pid
        with pytest.raises(EngineDeadError, match="shutting down"):
            async for _ in stream:
                pass
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    asyncio.run(main())


def test_an_engine_ends_when_its_parent_is_killed():
    script = """
        import asyncio, sys
        sys.path[:0] = [PATHS]
        from fake_engine import BUILD, fake_config
        from mimo_engine.engine.client import AsyncEngineClient

        async def main():
            config = fake_config(eos_id=9, special_ids=[9], vocab_size=10)
            client = AsyncEngineClient(config, BUILD)
            await client.start()
            print(client.engine_pid, flush=True)
            await asyncio.sleep(60)

        if __name__ == "__main__":
            asyncio.run(main())
    """
    paths = ", ".join(map(repr, [str(Path(__file__).parent), *sys.path]))
    code = textwrap.dedent(script).replace("PATHS", paths)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        engine_pid = int(parent.stdout.readline())
        parent.kill()
    for _ in range(6000):
        if not is_running(engine_pid):
            break
        time.sleep(0.01)
    else:
        os.kill(engine_pid, signal.SIGKILL)
        pytest.fail("the engine outlived its parent")


def is_running(pid):
    """A process that ended may stay as a zombie where nobody collects orphans."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
