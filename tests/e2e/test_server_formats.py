"""Structured output and demanded calls over HTTP, on the real engine with a random model."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import jsonschema
import pydantic
import pytest
from fake_server import FakeServer, ServerThread

from mimo_engine.cli.main import main
from mimo_engine.config.engine import EngineConfig, SchedulerConfig
from mimo_engine.config.server import ThinkingConfig

USER = [{"role": "user", "content": "Who is it?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
AS_PERSON = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {
            **PERSON,
            "properties": {**PERSON["properties"], "name": {"type": "string", "maxLength": 5}},
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
OFF = {"reasoning_effort": "none"}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    out = tmp_path_factory.mktemp("formats") / "random-model"
    assert main(["random-checkpoint", str(out), "--num-layers", "2"]) == 0
    return out


def serve(model_dir: Path, **kwargs):
    scheduler = SchedulerConfig(max_num_seqs=16, max_num_batched_tokens=512)
    config = EngineConfig(model=str(model_dir), device="cpu", scheduler=scheduler)
    return ServerThread(model_dir, config, "mimo_engine.engine.core:build_engine", **kwargs)


@pytest.fixture(scope="module")
def server(model_dir):
    with serve(model_dir) as server:
        yield server


def ask(server, **fields):
    body = {"messages": USER, "temperature": 1.5, "max_tokens": 200, **fields}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    return response.json()


def thinks(server, **fields):
    """What makes a random model think: the tag is likely, and the budget ends it."""
    tag = server.tokenizer.id_of("<think>")
    return {"logit_bias": {str(tag): 20}, "thinking_token_budget": 6, **fields}


@pytest.mark.parametrize("is_thinking", [False, True])
def test_answers_are_valid_by_their_schema(server, is_thinking):
    fields = thinks(server) if is_thinking else OFF
    result = ask(server, response_format=AS_PERSON, n=12, seed=1, **fields)
    num_valid = 0
    for choice in result["choices"]:
        assert bool(choice["message"]["reasoning_content"]) == is_thinking
        if choice["finish_reason"] == "length":
            continue
        num_valid += 1
        jsonschema.validate(json.loads(choice["message"]["content"]), PERSON)
    assert num_valid >= 10
    # The budget, and the tag that it forces.
    assert result["usage"]["reasoning_tokens"] == (7 * 12 if is_thinking else 0)


class Point(pydantic.BaseModel):
    x: Literal[1, 2]
    is_last: bool


def test_the_clients_parse_gives_an_object_of_the_type_that_was_asked_for(server):
    with server.openai() as client:
        answer = client.chat.completions.parse(
            model="org/fake-model", messages=USER, response_format=Point, extra_body=OFF
        )
    assert isinstance(answer.choices[0].message.parsed, Point)


def test_every_way_to_demand_a_form_is_kept(server):
    for fields, pattern in (
        ({"response_format": {"type": "json_object"}}, r"\{.*\}"),
        ({"regex": "[a-c]{3,5}-[0-9]"}, "[a-c]{3,5}-[0-9]"),
        ({"ebnf": 'start: ("yes" | "no") "!"'}, "(yes|no)!"),
        ({"structured_outputs": {"choice": ['a"b', "\u00e9\n"]}}, 'a"b|\u00e9\n'),
        ({"structured_outputs": {"regex": "x{2}"}}, "xx"),
        ({"structured_outputs": {"grammar": 'start: "z"'}}, "z"),
        ({"structured_outputs": {"json": json.dumps(PERSON)}}, r"\{.*\}"),
        ({"structured_outputs": {"json": PERSON}}, r"\{.*\}"),
        ({"structured_outputs": {"json_object": True}}, r"\{.*\}"),
    ):
        for choice in ask(server, n=2, seed=7, **OFF, **fields)["choices"]:
            if choice["finish_reason"] != "length":
                assert re.fullmatch(pattern, choice["message"]["content"], re.DOTALL), fields
    body = {"prompt": "It is ", "regex": "[0-9]{2}", "max_tokens": 9, "temperature": 2}
    text = server.post("/v1/completions", body).json()["choices"][0]["text"]
    assert re.fullmatch("[0-9]{2}", text)


def calls_of(choice):
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] is None
    return [call["function"] for call in choice["message"]["tool_calls"]]


@pytest.mark.parametrize("is_thinking", [False, True])
def test_a_demanded_call_is_valid_by_its_tools_schema(server, is_thinking):
    fields = {"tools": [FIND, NOW], "n": 4, "seed": 3, "max_tokens": 600}
    fields |= thinks(server) if is_thinking else OFF
    named = {"type": "function", "function": {"name": "find"}}
    for choice in ask(server, tool_choice="required", **fields)["choices"]:
        assert bool(choice["message"]["reasoning_content"]) == is_thinking
        for call in calls_of(choice):
            if call["name"] == "find":
                jsonschema.validate(json.loads(call["arguments"]), PERSON)
            else:
                assert (call["name"], call["arguments"]) == ("now", "{}")
    result = ask(server, tool_choice=named, parallel_tool_calls=False, **fields)
    for choice in result["choices"]:
        [call] = calls_of(choice)
        assert call["name"] == "find"
        jsonschema.validate(json.loads(call["arguments"]), PERSON)


def test_a_demanded_call_streams_to_the_same_call(server):
    fields = {"messages": USER, "tools": [FIND], "tool_choice": "required", **OFF}
    fields |= {"seed": 5, "temperature": 1.5, "parallel_tool_calls": False}
    plain = calls_of(ask(server, max_tokens=600, **fields)["choices"][0])
    with server.openai() as client:
        chunks = list(
            client.chat.completions.create(
                model="org/fake-model", stream=True, max_tokens=600, **fields
            )
        )
    pieces = [call for chunk in chunks for call in chunk.choices[0].delta.tool_calls or ()]
    arguments = [""] * len(plain)
    for piece in pieces:
        arguments[piece.index] += piece.function.arguments
    assert arguments == [call["arguments"] for call in plain]
    assert chunks[-1].choices[0].finish_reason == "tool_calls"


def test_a_thought_ends_at_its_budget_or_else_at_the_servers(model_dir, server):
    # <think> and the end of the turn are likely wherever they may come.
    tag, end = (server.tokenizer.id_of(name) for name in ("<think>", "<|im_end|>"))
    fields = {"logit_bias": {str(tag): 24, str(end): 20}, "separate_reasoning": False}
    fields |= {"temperature": 1, "n": 16, "seed": 1, "max_tokens": 40}
    texts = [choice["message"]["content"] for choice in ask(server, **fields)["choices"]]
    assert any(texts)
    assert "</think>" not in "".join(texts)
    policy = ThinkingConfig(thinking_token_budget=3, strict_thinking=True)
    with serve(model_dir, thinking=policy) as strict:
        num_closed = 0
        for budget, expected in ((None, 3), (5, 5)):
            result = ask(strict, thinking_token_budget=budget, **fields)
            texts = [choice["message"]["content"] for choice in result["choices"]]
            thoughts = [text for text in texts if text.startswith("<think>")]
            assert thoughts
            assert all("</think>" in text for text in thoughts)
            # The tokens of the budget, and </think>.
            assert result["usage"]["reasoning_tokens"] == len(thoughts) * (expected + 1)
            num_closed += len(thoughts)
            assert strict.metric("mimo_engine_thoughts_closed_total") == num_closed


def test_no_budget_closes_a_thought_that_a_tool_call_has_ended(server):
    names = ("<think>", "<tool_call>", "<|im_end|>")
    think, call, end = (server.tokenizer.id_of(name) for name in names)
    fields = {"logit_bias": {str(think): 24, str(call): 22, str(end): -100}, "logprobs": True}
    fields |= {"n": 16, "seed": 1, "max_tokens": 20, "thinking_token_budget": 6}
    before = server.metric("mimo_engine_thoughts_closed_total")
    called, num_forced = [], 0
    for choice in ask(server, tools=[NOW], **fields)["choices"]:
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        if tokens[0] != "<think>":
            continue
        if "<tool_call>" in tokens[:6]:
            called.append(tokens)
        else:
            assert tokens[6] == "</think>"
            num_forced += 1
    assert called
    assert any(tokens[6] != "</think>" for tokens in called)
    assert server.metric("mimo_engine_thoughts_closed_total") == before + num_forced
    # Without tools it is a thought like any other.
    for choice in ask(server, **fields)["choices"]:
        tokens = [entry["token"] for entry in choice["logprobs"]["content"]]
        assert tokens[0] != "<think>" or "</think>" in tokens[:7]


BAD_FORMATS = [
    ({"response_format": {"type": "xml"}}, "response_format", "choose text, json_object"),
    ({"response_format": {}}, "response_format", "choose text"),
    ({"response_format": {"type": "json_schema"}}, "response_format", "schema is required"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        "response_format",
        "response_format.json_schema.schema is required",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": [1]}}},
        "response_format",
        "must be a JSON schema",
    ),
    ({"response_format": {"type": "json_object", "schema": {}}}, "response_format", "key 'schema'"),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strin"}}}},
        "response_format",
        "Invalid type",
    ),
    ({"regex": "("}, "regex", "regex: the regular expression"),
    ({"regex": "a", "ebnf": "b"}, "ebnf", "exclude each other"),
    ({"ebnf": "start: nowhere"}, "ebnf", "ebnf: the grammar"),
    ({"structured_outputs": {"choice": []}}, "structured_outputs", "wrong type"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "structured_outputs", "exactly one"),
    ({"structured_outputs": {"structural_tag": "x"}}, "structured_outputs", "key 'structural_tag'"),
    ({"guided_json": {}}, "guided_json", "use response_format"),
    ({"regex": "\ud800"}, "regex", "surrogate"),
]


@pytest.mark.parametrize(("fields", "param", "message"), BAD_FORMATS)
def test_a_form_that_cannot_be_kept_is_a_400_that_names_the_field(server, fields, param, message):
    for path, own in (
        ("/v1/chat/completions", {"messages": USER}),
        ("/v1/completions", {"prompt": "x"}),
    ):
        response = server.post(path, {**own, **fields})
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] == param
        assert message in error["message"]


def test_hostile_forms_are_refused_while_a_stream_goes_on(tmp_path):
    doubling = "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60: "a"'
    nested = '{"items":' * 400 + "{}" + "}" * 400
    hostile = [
        {"regex": "(((a{1,100}){1,100}){1,100}){1,100}"},
        {"regex": "(" * 60_000 + "a" + ")" * 60_000},
        {"regex": "(abc|[x-z]{3,9}){1,100000000}"},
        {"ebnf": doubling},
        {"ebnf": "start: T\nT: T"},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"schema": {"enum": ["x" * 2**20]}},
            }
        },
        {"structured_outputs": {"json": nested[:-1]}},
    ]
    with FakeServer(tmp_path, step_s=0.004) as server, server.openai() as client:
        stream = client.completions.create(
            model="org/fake-model",
            prompt="on and on",
            max_tokens=800,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        next(stream)
        with ThreadPoolExecutor(len(hostile)) as pool:
            answers = pool.map(
                lambda fields: server.post("/v1/chat/completions", {"messages": USER, **fields}),
                hostile,
            )
        # Those that are taken stay within bounds at every token.
        statuses = [answer.status_code for answer in answers]
        assert set(statuses) <= {200, 400}
        assert statuses.count(400) >= 4
        assert sum(1 for _ in stream) == 799
