"""The requests of the README, each to the default model, with the answer that stands there."""

import base64
import json
import re
from pathlib import Path

import pytest
from fake_server import ServerThread

from mimo_engine.config.engine import EngineConfig
from mimo_engine.utils.hub import resolve_model

ROOT = Path(__file__).parents[2]
REQUESTS = re.findall(
    r"^ask <<EOF\n(.*?)\nEOF\n((?:# [^\n]*\n)+)", (ROOT / "README.md").read_text(), re.DOTALL | re.M
)


def substituted(text):
    """What the shell makes of the request."""

    def content(match):
        return base64.b64encode((ROOT / "examples" / "media" / match[1]).read_bytes()).decode()

    return re.sub(r"\$\(file ([\w.]+)\)", content, text)


@pytest.fixture(scope="module")
def server():
    directory = resolve_model("demo")
    config = EngineConfig(model=str(directory), device="cpu")
    build = "mimo_engine.engine.core:build_engine"
    with ServerThread(directory, config, build) as server:
        yield server


def test_there_are_five_of_them():
    assert len(REQUESTS) == 5


@pytest.mark.parametrize("number", range(len(REQUESTS)))
def test_a_request_of_the_readme_has_the_answer_that_stands_there(server, number):
    request, answers = REQUESTS[number]
    response = server.post("/v1/chat/completions", json.loads(substituted(request)))
    assert response.status_code == 200, response.text
    message = response.json()["choices"][0]["message"]
    for line in answers.splitlines():
        name, _, expected = line.removeprefix("# ").partition(": ")
        if name == "call":
            (call,) = message["tool_calls"]
            tool, _, arguments = expected.partition(" ")
            assert call["function"]["name"] == tool
            assert json.loads(call["function"]["arguments"]) == json.loads(arguments)
        else:
            assert message[name] == expected
