"""The server against its own description, /openapi.json, from which all endpoints are taken.

Whatever fits the description or breaks it, no answer is a 500 or fails to come, and each is one
that was described.
"""

import copy
from collections import Counter

import httpx
import pytest
import schemathesis
from fake_server import MODEL, FakeServer
from hypothesis import given, note, settings
from hypothesis import strategies as st
from omni_server import make_omni, omni_server
from schemathesis import GenerationMode
from schemathesis.specs.openapi import checks

from media_files import make_audio, tone
from mimo_engine.config.engine import SchedulerConfig

CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
]
PATIENCE_S = 60
BROKEN_SEEDS = (13, 14)
"""What the fake engine fails on, as asked."""
MESSAGES = [{"role": "user", "content": "a b c"}]
GOOD = {
    "model": MODEL,
    "prompt": "a b c",
    "messages": MESSAGES,
    "input": MESSAGES,
    "tokens": [1, 2, 3],
    "max_tokens": 8,
    "file": make_audio(tone(0.5)),
    "max_completion_tokens": 4,
}
"""Values of fields, by their names. With these and one or two generated ones a request often gets
past all checks; of generated ones alone, hardly ever."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    # A short context, so that an answer of any length ends soon.
    scheduler = SchedulerConfig(max_model_len=1024)
    with FakeServer(tmp_path_factory.mktemp("model"), scheduler=scheduler) as server:
        yield server


TOOL = {
    "name": "f",
    "description": "d",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": ["x"]}, "b": {"$ref": "#/$defs/n"}},
        "required": ["a"],
        "$defs": {"n": {"anyOf": [{"type": "integer"}, {"type": "array", "items": {}}]}},
    },
}
FORM = {"name": "s", "schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}
WHOLE = {
    "/v1/chat/completions": {
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "s"}]},
            {"role": "user", "content": "a"},
            {
                "role": "assistant",
                "content": None,
                "reasoning_content": "r",
                "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
                ],
            },
            {"role": "tool", "tool_call_id": "1", "content": "t"},
        ],
        "tools": [{"type": "function", "function": TOOL}],
        "tool_choice": "auto",
        "response_format": {"type": "json_schema", "json_schema": FORM},
        "chat_template_kwargs": {"enable_thinking": True},
        "logit_bias": {"5": 1.0},
        "stop": ["x"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "max_tokens": 4,
    },
    "/v1/completions": {
        "prompt": ["a b", "c"],
        "structured_outputs": {"choice": ["x", "y"]},
        "stop_token_ids": [5],
        "logprobs": 2,
        "n": 2,
        "max_tokens": 4,
    },
    "/v1/responses": {
        "instructions": "i",
        "input": [
            {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
            {
                "type": "reasoning",
                "id": "r",
                "summary": [],
                "content": [{"type": "reasoning_text", "text": "r"}],
            },
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "1", "output": "t"},
        ],
        "tools": [{"type": "function", **TOOL}],
        "tool_choice": "auto",
        "text": {"format": {"type": "json_schema", **FORM}},
        "reasoning": {"effort": "low"},
        "metadata": {"k": "v"},
        "max_output_tokens": 16,
    },
    "/v1/messages": {
        "model": MODEL,
        "system": [{"type": "text", "text": "s"}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "text", "text": "c"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"a": "x"}},
                ],
            },
            {
                "role": "user",
                "content": [{"type": "tool_result", "tool_use_id": "1", "content": "t"}],
            },
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": TOOL["parameters"]}],
        "tool_choice": {"type": "auto"},
        "stop_sequences": ["x"],
        "stream": True,
        "max_tokens": 4,
    },
}
"""Requests with many of their fields, by path."""
# Halves of surrogate pairs included.
TEXTS = st.text(st.characters(), max_size=5)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=5,
)


def nodes(value):
    """Every list and object in `value`, itself included, that is not empty."""
    if isinstance(value, list | dict) and value:
        yield value
        for inner in value.values() if isinstance(value, dict) else value:
            yield from nodes(inner)


@st.composite
def damaged(draw, whole):
    """`whole` with up to three values replaced, removed or moved elsewhere."""
    body = copy.deepcopy(whole)
    for _ in range(draw(st.integers(1, 3))):
        node = draw(st.sampled_from(list(nodes(body)) or [{"": 0}]))
        keys = list(node) if isinstance(node, dict) else range(len(node))
        key = draw(st.sampled_from(keys))
        match draw(st.sampled_from(("replace", "remove", "move"))):
            case "replace":
                node[key] = draw(JSON)
            case "remove":
                del node[key]
            case "move":
                node[key] = copy.deepcopy(draw(st.sampled_from(list(nodes(whole)))))
    return body


@st.composite
def cases(draw, operation, fields, places):
    """Requests that fit the description of `operation` or break it, half of them mended: places in
    the path are those of `places`, and all but two of the body's `fields` are from GOOD."""
    case = draw(operation.as_strategy(generation_mode=draw(st.sampled_from(GenerationMode))))
    is_mended = draw(st.booleans())
    if is_mended:
        case.path_parameters.update(
            {name: places[name] for name in case.path_parameters if name in places}
        )
    if isinstance(case.body, dict):
        if is_mended:
            few = draw(st.lists(st.sampled_from(fields), max_size=2, unique=True))
            own = {name: case.body[name] for name in few if name in case.body}
            good = {name: value for name, value in GOOD.items() if name in fields}
            if "messages" in good:
                good.pop("prompt", None)
            if "stream" in fields:
                good["stream"] = draw(st.booleans())
            case.body = good | own
        if case.body.get("seed") in BROKEN_SEEDS:
            del case.body["seed"]
    return case


def fields_of(spec, operation):
    """Names of the fields of a request's body; none where there is no body."""
    method = spec["paths"][operation.path][operation.method]
    for content in method.get("requestBody", {}).get("content", {}).values():
        name = content["schema"].get("$ref", "").rpartition("/")[2]
        return sorted(spec["components"]["schemas"].get(name, content["schema"])["properties"])
    return []


def fuzz(url, max_examples, path=None):
    """Send requests to all endpoints, or to that at `path`. How many got an answer, by operation
    and status."""
    spec = httpx.get(f"{url}/openapi.json").json()
    kept = httpx.post(f"{url}/v1/responses", json={"input": "a b c", "max_output_tokens": 16})
    places = {"name": MODEL, "response_id": kept.json()["id"]}
    seen = Counter()

    def send(operation):
        @settings(max_examples=max_examples)
        @given(case=cases(operation, fields_of(spec, operation), places))
        def test(case):
            note(case.as_curl_command())
            response = case.call(timeout=PATIENCE_S)
            case.validate_response(response, checks=CHECKS)
            seen[operation.label, response.status_code] += 1

        test()

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    # What is deleted cannot be asked for any more.
    for operation in sorted(operations, key=lambda one: one.method == "delete"):
        if path in (None, operation.path):
            send(operation)
    return seen


def damage_all(server, max_examples):
    """Send damaged requests to the endpoints of WHOLE. Answers by path and status."""
    seen = Counter()

    def send(path, whole):
        @settings(max_examples=max_examples)
        @given(damaged(whole))
        def test(body):
            if body.get("seed") in BROKEN_SEEDS:
                return
            response = server.post(path, body)
            seen[path, response.status_code] += 1
            if response.status_code != 200:
                assert response.status_code in (400, 404), response.text
                assert response.json()["error"]["message"]

        response = server.post(path, whole)
        assert response.status_code == 200, response.text
        test()

    for path, whole in WHOLE.items():
        send(path, whole)
    return seen


def test_what_fits_the_description_and_what_breaks_it_is_answered_as_described(server):
    seen = fuzz(server.url, 6)
    assert {status for _, status in seen} <= {200, 400, 404}
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/tokenize"):
        assert seen[f"POST {path}", 200], seen


def test_damaged_requests_are_refused_or_served(server):
    assert {status for _, status in damage_all(server, 12)} == {200, 400}


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_thousands_of_requests_get_no_500(server):
    for seen in (fuzz(server.url, 400), damage_all(server, 2000)):
        assert {status for _, status in seen} <= {200, 400, 404}


@pytest.mark.prove
@pytest.mark.timeout(0)
def test_hundreds_of_forms_with_a_sound_get_no_500(tmp_path):
    """Over a model that hears."""
    with omni_server(make_omni(tmp_path / "model")) as server:
        seen = fuzz(server.url, 400, "/v1/audio/transcriptions")
    assert {200, 400} <= {status for _, status in seen} <= {200, 400, 404}
