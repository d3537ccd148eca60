"""The Responses API over an engine that follows a script: events, items, errors, what is kept."""

import json
import os
import signal

import httpx
import openai
import pytest
from fake_server import MODEL, FakeServer, scripted

from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.server import ResponsesConfig

WEATHER = {
    "type": "function",
    "name": "get_weather",
    "parameters": {
        "type": "object",
        "properties": {"location": {"type": "string"}, "days": {"type": "integer"}},
    },
}
CALL = (
    "<tool_call>\n<function=get_weather>\n<parameter=location>{}</parameter>\n"
    "<parameter=days>3</parameter>\n</function>\n</tool_call>"
)
PATH = "/v1/responses"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    scheduler = SchedulerConfig(max_model_len=16384)
    responses = ResponsesConfig(response_store=20)
    with FakeServer(
        tmp_path_factory.mktemp("model"), scheduler=scheduler, responses=responses
    ) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.openai() as client:
        yield client


def says(text):
    """Input that the engine answers with `text`."""
    return "Well?" + scripted(text)


def create(client, text, **kwargs):
    body = {"input": says(text), "tools": [WEATHER]} | kwargs
    return client.responses.create(model=MODEL, **body)


def events_of(server, text, **kwargs):
    """The events of a stream, each under its own name, which the line before it must have."""
    body = {"input": says(text), "tools": [WEATHER], "stream": True} | kwargs
    response = server.post(PATH, body)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == len(events)
        events.append(event)
    return events


def without_deltas(events):
    """Names, short, with the output index of an item."""
    return [
        (event["type"].removeprefix("response."), event.get("output_index"))
        for event in events
        if not event["type"].endswith(".delta")
    ]


def rebuilt(events):
    """The output that the deltas add up to, by output index: type and text."""
    found = {}
    for event in events:
        if event["type"] == "response.output_item.added":
            assert event["output_index"] == len(found)
            found[event["output_index"]] = [event["item"]["type"], ""]
        elif event["type"].endswith(".delta"):
            found[event["output_index"]][1] += event["delta"]
    return list(found.values())


def said(output):
    """Type and text of items of a whole response."""
    return [
        [item["type"], item["arguments"] if "arguments" in item else item["content"][0]["text"]]
        for item in output
    ]


OPEN = [("created", None), ("in_progress", None)]
CLOSE = [("completed", None)]


def thought(i):
    return [
        ("output_item.added", i),
        ("content_part.added", i),
        ("reasoning_text.done", i),
        ("content_part.done", i),
        ("output_item.done", i),
    ]


def text(i):
    return [(name.replace("reasoning_text", "output_text"), at) for name, at in thought(i)]


def call(i):
    return [
        ("output_item.added", i),
        ("function_call_arguments.done", i),
        ("output_item.done", i),
    ]


SAMPLES = {
    "text": ("Hello é🙂 there", text(0)),
    "thought": ("<think>Hm.</think>Yes.", thought(0) + text(1)),
    "thought alone": ("<think>Hm.</think>", thought(0) + text(1)),
    "nothing": ("", text(0)),
    "call": (CALL.format("Rome"), call(0)),
    "all": (
        f"<think>Both.</think>I look.{CALL.format('Rome')}\n{CALL.format('Bonn')}",
        thought(0) + text(1) + call(2) + call(3),
    ),
    "text behind a call": (f"{CALL.format('Rome')}So.", call(0) + text(1)),
}


@pytest.mark.parametrize("step", [1, 3, 100])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_stream_is_items_in_order_and_adds_up_to_the_whole(server, name, step):
    written, items = SAMPLES[name]
    events = events_of(server, written, seed=step)
    assert without_deltas(events) == OPEN + items + CLOSE
    final = events[-1]["response"]
    assert final["status"] == "completed"
    # Clients find a message in what was not cut, and deltas only where there is text.
    assert rebuilt(events) == said(final["output"])
    done = [e["item"] for e in events if e["type"] == "response.output_item.done"]
    assert done == final["output"]
    whole = server.post(PATH, {"input": says(written), "tools": [WEATHER], "seed": step}).json()
    assert said(whole["output"]) == said(final["output"])
    assert whole["usage"]["output_tokens"] == final["usage"]["output_tokens"]


def test_text_within_a_call_is_an_item_of_its_own(server):
    written = CALL.format("Rome").replace("\n<parameter=days>", "stray\n<parameter=days>")
    events = events_of(server, written)
    final = events[-1]["response"]
    assert rebuilt(events) == said(final["output"])
    assert [item["type"] for item in final["output"]] == ["function_call", "message"]
    assert json.loads(final["output"][0]["arguments"]) == {"location": "Rome", "days": 3}


@pytest.mark.parametrize(
    ("written", "statuses"),
    [
        ("one two three four five", ["incomplete"]),
        (f"<think>Hm</think>So.{CALL.format('Rome')}", ["completed", "completed", "incomplete"]),
    ],
)
def test_what_was_cut_is_incomplete(server, written, statuses):
    max_tokens = len(server.tokenizer.encode(written)) - 6
    events = events_of(server, written, max_output_tokens=max_tokens)
    assert events[-1]["type"] == "response.incomplete"
    response = events[-1]["response"]
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]][-1] == "incomplete"
    assert [item["status"] for item in response["output"]][: len(statuses) - 1] == statuses[:-1]
    assert rebuilt(events) == said(response["output"])


def test_a_conversation_goes_on_behind_a_call_that_was_cut(server):
    half = f"<think>Hm</think>So.{CALL.format('Rome')}".partition("</parameter>")[0]
    first = server.post(PATH, {"input": says(half), "tools": [WEATHER]}).json()
    assert [item["status"] for item in first["output"]] == ["completed", "completed", "incomplete"]
    cut, then = first["output"][-1], {"role": "user", "content": says("Here.")}
    asked = {"role": "user", "content": says(half)}
    for fields in (
        {"previous_response_id": first["id"], "input": [then]},
        {"input": [asked, *first["output"], then]},
    ):
        response = server.post(PATH, {**fields, "tools": [WEATHER]})
        assert response.status_code == 200, response.text
        assert said(response.json()["output"]) == [["message", "Here."]]
    result = {"type": "function_call_output", "call_id": cut["call_id"], "output": "?"}
    refused = server.post(PATH, {"previous_response_id": first["id"], "input": [result]})
    assert refused.status_code == 400
    assert "was cut" in refused.json()["error"]["message"]


def test_what_fails_before_a_stream_begins_is_an_ordinary_error(server):
    response = server.post(PATH, {"input": "x", "stream": True, "seed": 14})
    assert response.status_code == 500
    assert response.json()["error"]["message"]


def test_parallel_tool_calls_false_ends_with_the_first_call(client):
    written = CALL.format("Rome") + CALL.format("Bonn")
    response = create(client, written, parallel_tool_calls=False)
    assert [item.type for item in response.output] == ["function_call"]
    assert response.status == "completed"
    assert response.parallel_tool_calls is False


def test_max_tool_calls_is_chats(client):
    written = CALL.format("Rome") * 3
    response = create(client, written, max_tool_calls=2)
    assert [item.type for item in response.output] == ["function_call"] * 2
    assert (response.status, response.max_tool_calls) == ("completed", 2)


def test_items_are_the_messages_of_chat(server, client):
    """Instructions, a turn of thought, text and calls, and results: the model reads what it would
    of chat completions."""
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Rome and Bonn?"}]},
        {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {
            "type": "message",
            "role": "assistant",
            "content": [{"type": "output_text", "text": "So."}],
        },
        *(
            {
                "type": "function_call",
                "call_id": city,
                "name": "get_weather",
                "arguments": json.dumps({"location": city}),
            }
            for city in ("Rome", "Bonn")
        ),
        {"type": "function_call_output", "call_id": "Bonn", "output": "7"},
        {
            "type": "function_call_output",
            "call_id": "Rome",
            "output": [{"type": "input_text", "text": "21"}],
        },
    ]
    calls = [
        {
            "id": city,
            "type": "function",
            "function": {"name": "get_weather", "arguments": json.dumps({"location": city})},
        }
        for city in ("Rome", "Bonn")
    ]
    messages = [
        {"role": "system", "content": "Short."},
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Rome and Bonn?"},
        {"role": "assistant", "content": "So.", "reasoning_content": "Hm", "tool_calls": calls},
        {"role": "tool", "tool_call_id": "Bonn", "content": "7"},
        {"role": "tool", "tool_call_id": "Rome", "content": "21"},
    ]
    expected = server.post("/v1/chat/completions", {"messages": messages}).json()
    response = server.post(PATH, {"input": items, "instructions": "Short."})
    assert response.status_code == 200, response.text
    text = expected["choices"][0]["message"]["content"]
    assert said(response.json()["output"]) == [["message", text]]
    assert response.json()["usage"]["input_tokens"] == expected["usage"]["prompt_tokens"]


def input_tokens(client, input, **kwargs):
    return client.responses.create(model=MODEL, input=input, **kwargs).usage.input_tokens


def test_a_thought_comes_back_by_id_by_item_by_reference_and_sealed(client):
    first = create(
        client, "<think>A long thought.</think>Yes.", include=["reasoning.encrypted_content"]
    )
    thought, message = first.output
    question = {"role": "user", "content": says("<think>A long thought.</think>Yes.")}
    more = {"role": "user", "content": says("Good.")}
    sealed = {"type": "reasoning", "summary": [], "encrypted_content": thought.encrypted_content}
    references = [{"type": "item_reference", "id": item.id} for item in first.output]
    counts = {
        input_tokens(client, [more], previous_response_id=first.id),
        input_tokens(client, [question, thought, message, more]),
        input_tokens(client, [question, *references, more]),
        input_tokens(client, [question, sealed, message, more]),
    }
    assert len(counts) == 1
    [count] = counts
    assert count > input_tokens(client, [question, message, more])


def test_instructions_are_those_of_each_request(client):
    first = create(client, "Yes.", instructions="Many words of instructions stand here.")
    bare = create(client, "Yes.")
    more = [{"role": "user", "content": "And?"}]
    with_id = input_tokens(client, more, previous_response_id=first.id)
    assert with_id == input_tokens(client, more, previous_response_id=bare.id)


def test_the_least_recently_used_response_goes(client):
    first = create(client, "first")
    create(client, "second")
    for _ in range(18):
        create(client, "x")
    client.responses.retrieve(first.id)
    last = create(client, "last", previous_response_id=first.id)
    assert client.responses.retrieve(first.id).output_text == "first"
    assert client.responses.retrieve(last.id) == last


BAD = [
    ({"input": []}, "input"),
    ({"input": 3}, "input.str"),
    ({}, "input"),
    ({"input": "x", "no_such_field": 1}, "no_such_field"),
    ({"input": "x", "messages": []}, "messages"),
    ({"input": "x", "max_tokens": 3}, "max_tokens"),
    ({"input": "x", "background": True}, "background"),
    ({"input": "x", "conversation": "conv_1"}, "conversation"),
    ({"input": "x", "top_logprobs": 2}, "top_logprobs"),
    ({"input": "x", "include": ["file_search_call.results"]}, "include"),
    ({"input": "x", "truncation": "auto"}, "truncation"),
    ({"input": "x", "max_output_tokens": 0}, "max_output_tokens"),
    ({"input": "x", "temperature": -1}, "temperature"),
    ({"input": "x", "stream_options": {}}, "stream_options"),
    ({"input": "x", "metadata": {"a": "b" * 513}}, "metadata"),
    ({"input": "x", "user": "half a pair: \ud800"}, "user"),
    ({"input": "half a pair: \ud800"}, "input"),
    ({"input": "x", "reasoning": {"effort": "much"}}, "reasoning.effort"),
    ({"input": "x", "reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"input": "x", "text": {"verbosity": "low"}}, "text.verbosity"),
    ({"input": "x", "text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format"),
    ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format"),
    ({"input": "x", "tools": [{"type": "web_search"}]}, "tools[0].type"),
    ({"input": "x", "tools": [{"type": "function", "function": {"name": "a"}}]}, "tools[0]"),
    ({"input": "x", "tools": [{"type": "function"}]}, "tools[0].name"),
    ({"input": "x", "tool_choice": "required"}, "tools"),
    ({"input": "x", "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ({"input": "x", "tool_choice": {"type": "function", "name": "f", "mode": 1}}, "tool_choice"),
    ({"input": "x", "previous_response_id": "resp_none"}, "previous_response_id"),
    ({"input": [{"type": "item_reference", "id": "rs_none"}]}, "input[0]"),
    ({"input": [{"type": "web_search_call", "id": "ws_1"}]}, "input[0]"),
    ({"input": [{"role": "user", "content": "x", "name": "y"}]}, "input[0]"),
    ({"input": [{"role": "robot", "content": "x"}]}, "input[0].role"),
    (
        {"input": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        "input[0].content[0]",
    ),
    ({"input": [{"type": "reasoning", "encrypted_content": "gAAA"}]}, "input[0].encrypted_content"),
    ({"input": [{"type": "function_call", "call_id": "a", "name": "b"}]}, "input[0].arguments"),
]


@pytest.mark.parametrize(("body", "param"), BAD, ids=lambda value: str(value)[:60])
def test_a_bad_request_is_refused_by_the_name_of_its_field(server, body, param):
    response = server.post(PATH, body)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert param == "messages" or "messages" not in error["message"]
    assert "response_format" not in error["message"]


def test_an_error_about_a_message_names_the_item(server):
    items = [
        {"role": "user", "content": "x"},
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "y"}]},
        {"type": "function_call", "call_id": "a", "name": "b", "arguments": "{"},
    ]
    error = server.post(PATH, {"input": items}).json()["error"]
    assert error["message"].startswith("input[2].arguments is not valid JSON")
    # Nothing is as good as an empty object.
    items[2]["arguments"] = ""
    items.append({"type": "function_call_output", "call_id": "other", "output": "1"})
    error = server.post(PATH, {"input": items}).json()["error"]
    assert error["message"].startswith("input[3].call_id")


def test_an_item_is_not_taken_twice(client):
    first = create(client, "Yes.")
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        client.responses.create(model=MODEL, input=[first.output[0]], previous_response_id=first.id)


def test_lists_of_input_items_come_in_pages(server, client):
    items = [{"type": None, "role": "user", "content": f"question {i}"} for i in range(5)]
    response = create(client, "", input=items)
    pages = client.responses.input_items.list(response.id, limit=2, order="asc")
    assert [item.content[0].text for item in pages] == [f"question {i}" for i in range(5)]
    newest = client.responses.input_items.list(response.id, limit=1).data[0]
    assert (newest.type, newest.content[0].text) == ("message", "question 4")
    path = f"{PATH}/{response.id}/input_items"
    assert server.get(f"{path}?after=none").status_code == 400
    assert server.get(f"{path}?limit=0").status_code == 400
    refused = server.get(f"{path}?include[]=reasoning.encrypted_content")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "include")


@pytest.mark.parametrize("path", ["", "/input_items", "/cancel"])
def test_what_is_not_kept_is_not_found(server, path):
    url = f"{PATH}/resp_none{path}"
    response = server.post(url, {}) if path == "/cancel" else server.get(url)
    assert response.status_code == 404
    assert "resp_none" in response.json()["error"]["message"]


def first_events(url, on_second):
    """The events of a long stream; after the second, `on_second` is called: true ends it."""
    events = []
    body = {"input": "word ", "stream": True, "ignore_eos": True}
    with httpx.stream("POST", url + PATH, json=body, timeout=30) as response:
        for line in response.iter_lines():
            if line.startswith("data: "):
                events.append(json.loads(line.removeprefix("data: ")))
                if len(events) == 2 and on_second():
                    break
    return events


def test_a_stream_that_is_left_is_not_kept(tmp_path):
    with FakeServer(tmp_path, step_s=0.005) as server:
        [created, _] = first_events(server.url, lambda: True)
        assert server.get(f"{PATH}/{created['response']['id']}").status_code == 404


def test_a_stream_whose_engine_dies_ends_with_an_error_and_the_failed_response(tmp_path):
    with FakeServer(tmp_path, step_s=0.005) as server:
        pid = server.engine.engine_pid
        events = first_events(server.url, lambda: os.kill(pid, signal.SIGKILL))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert events[-2]["code"] == "engine_dead"
    response = events[-1]["response"]
    assert (response["status"], response["store"]) == ("failed", False)
    assert response["error"]["code"] == "server_error"


def test_a_server_that_keeps_nothing_says_so(tmp_path):
    with FakeServer(tmp_path, responses=ResponsesConfig(response_store=0)) as server:
        response = server.post(PATH, {"input": "x"}).json()
        assert response["store"] is False
        assert server.get(f"{PATH}/{response['id']}").status_code == 404
        for field in ({"store": True}, {"previous_response_id": response["id"]}):
            refused = server.post(PATH, {"input": "x", **field})
            assert refused.status_code == 400
            assert "--response-store" in refused.json()["error"]["message"]
