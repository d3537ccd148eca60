"""The server as a program: what it says, when the port opens, and how it ends."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import httpx
import pytest

from mimo_engine.chat.template import family_template
from mimo_engine.checkpoint.synthetic_tokenizer import write_synthetic_tokenizer
from mimo_engine.server.run import bound_socket

PROGRAM = Path(__file__).with_name("serve_fake.py")


@contextmanager
def program(directory, fake=None, **server):
    vocabulary = write_synthetic_tokenizer(directory, chat_template=family_template())
    options = {"eos_id": vocabulary.ids["<|im_end|>"], "special_ids": list(vocabulary.ids.values())}
    options |= {"vocab_size": vocabulary.num_tokens, **(fake or {})}
    (directory / "fake.json").write_text(json.dumps(options))
    server = {"port": 0, "served_model_name": "fake", **server}
    with subprocess.Popen(
        [sys.executable, str(PROGRAM), str(directory), json.dumps(server)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def url_of(process):
    for line in process.stderr:
        if found := re.search(r"serving on (http://[0-9.:]+)/v1", line):
            return found.group(1)
    pytest.fail("the server did not start")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_running_requests_finish_and_ends_with_0(tmp_path, number):
    with program(tmp_path, {"step_s": 0.01}) as process:
        url = url_of(process)
        body = {"prompt": "a b c", "max_tokens": 100, "ignore_eos": True, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=30) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(number)
            assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert process.wait(30) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_refused_checkpoint_is_explained_and_no_port_opens(tmp_path):
    with program(tmp_path, {"refuse": "model.norm.weight is missing: fetch it again"}) as process:
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 1
    assert "did not start: model.norm.weight is missing: fetch it again" in stderr
    assert "Traceback" not in stderr
    assert "serving on" not in stderr


def test_a_taken_port_is_found_out_before_the_engine_starts(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with program(tmp_path, {"refuse": "not reached"}, port=port) as process:
            _, stderr = process.communicate(timeout=30)
            assert process.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port}" in stderr
    assert "--port" in stderr


def test_a_chat_template_of_the_user_replaces_the_checkpoints(tmp_path):
    template = tmp_path / "mine.jinja"
    template.write_text("{{ messages[0].content }}")
    with program(tmp_path, chat_template=str(template)) as process:
        url = url_of(process)
        body = {"messages": [{"role": "user", "content": "hello"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
        assert answer["choices"][0]["message"]["content"] == "hello"
        assert answer["model"] == "fake"
        process.terminate()
        assert process.wait(30) == 0


@pytest.mark.prove
def test_a_connection_outlives_its_idleness_in_a_clients_pool(tmp_path):
    # httpx, and so the clients of OpenAI and Anthropic, use one again that was idle for up to 5 s.
    with program(tmp_path) as process:
        connection = HTTPConnection(url_of(process).removeprefix("http://"), timeout=30)
        with closing(connection):
            for idle_s in (0, 10):
                time.sleep(idle_s)
                connection.request("GET", "/health")
                response = connection.getresponse()
                assert response.status == 200
                response.read()


def test_what_is_written_goes_out_at_once():
    """Else the second write of an answer waits for the client's acknowledgement."""

    async def accepted(sock):
        found = asyncio.get_running_loop().create_future()
        server = await asyncio.start_server(lambda _, writer: found.set_result(writer), sock=sock)
        async with server:
            _, client = await asyncio.open_connection(*sock.getsockname())
            writer = await found
            connection = writer.get_extra_info("socket")
            no_delay = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            for one in (client, writer):
                one.close()
                await one.wait_closed()
        return no_delay

    with bound_socket("127.0.0.1", 0) as sock:
        assert asyncio.run(accepted(sock))
