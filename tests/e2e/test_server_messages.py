"""The Messages API over an engine that follows a script: events, ends of answers, errors."""

import json
import os
import signal

import httpx
import pytest
from fake_server import MODEL, FakeServer, scripted, until
from test_server_tools import PARIS, PARIS_ARGUMENTS, ROME

from mimo_engine.config.engine import SchedulerConfig

WEATHER = {
    "name": "get_weather",
    "input_schema": {
        "type": "object",
        "properties": {
            "location": {"type": "string"},
            "days": {"type": "integer"},
            "metric": {"type": "boolean"},
            "tags": {"type": "array", "items": {"type": "string"}},
        },
    },
}
NOW = {"name": "now", "input_schema": {"type": "object"}, "cache_control": {"type": "ephemeral"}}
TOOLS = [WEATHER, NOW]
ADAPTIVE = {"type": "adaptive"}
USER = [{"role": "user", "content": "Hello"}]
# In an engine that follows a script, top_k is how many tokens a step has.
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    scheduler = SchedulerConfig(max_model_len=2048)
    with FakeServer(tmp_path_factory.mktemp("model"), scheduler=scheduler) as server:
        yield server


def asking(text, **fields):
    """A request that the engine answers with `text`."""
    messages = [{"role": "user", "content": "Well?" + scripted(text)}]
    return {"model": MODEL, "max_tokens": 500, "messages": messages, **fields}


# In steps of 0.05 s it lasts 20 s or more: no machine is so busy that it ends before it is left.
LONG = asking("word " * 400, max_tokens=1000)


def whole(server, body):
    response = server.post("/v1/messages", body)
    assert response.status_code == 200, response.text
    assert response.headers["request-id"].startswith("req_")
    return response.json()


def events(server, body):
    """Of a stream: each is named in the line before its data."""
    lines = []
    with httpx.stream(
        "POST", f"{server.url}/v1/messages", json={**body, "stream": True}, timeout=30
    ) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["request-id"].startswith("req_")
        lines = [line for line in response.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    found = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert names == [event["type"] for event in found]
    return found


def blocks_in(found):
    """What the events of blocks add up to, each checked for its place."""
    blocks, is_open = [], False
    for event in found:
        kind = event["type"].removeprefix("content_block_")
        if kind == "start":
            assert (is_open, event["index"]) == (False, len(blocks))
            blocks.append(event["content_block"])
            is_open = True
            continue
        assert is_open
        assert event["index"] == len(blocks) - 1
        if kind == "stop":
            is_open = False
            if blocks[-1]["type"] == "tool_use":
                blocks[-1]["input"] = json.loads(blocks[-1].pop("partial_json", "{}"))
            continue
        delta = event["delta"]
        if delta["type"] == "signature_delta":
            blocks[-1]["signature"] = delta["signature"]
            continue
        [key] = delta.keys() - {"type"}
        assert delta["type"] == DELTAS[key]
        blocks[-1][key] = blocks[-1].get(key, "") + delta[key]
    assert not is_open
    return blocks


def without_ids(content):
    return [{key: value for key, value in block.items() if key != "id"} for block in content]


def test_a_stream_of_text_has_the_events_of_the_api(server):
    found = events(server, asking("one two three"))
    types = [event["type"] for event in found]
    num_deltas = types.count("content_block_delta")
    assert types == [
        *("message_start", "ping", "content_block_start"),
        *["content_block_delta"] * num_deltas,
        *("content_block_stop", "message_delta", "message_stop"),
    ]
    assert num_deltas > 3
    begin, end = found[0]["message"], found[-2]
    assert begin["id"].startswith("msg_")
    assert (begin["type"], begin["role"], begin["model"]) == ("message", "assistant", MODEL)
    assert (begin["content"], begin["stop_reason"], begin["stop_sequence"]) == ([], None, None)
    assert found[2]["content_block"] == {"type": "text", "text": ""}
    assert end["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    prompt = ("input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens")
    assert all(begin["usage"][key] == end["usage"][key] for key in prompt)
    assert 0 < begin["usage"]["output_tokens"] < end["usage"]["output_tokens"]
    assert found[-1] == {"type": "message_stop"}


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("plain", ["text"]),
        ("", []),
        ("<think>hm</think>", ["thinking"]),
        ("<think>a < b</thin</think>x </tool_call> <tool_cal", ["thinking", "text"]),
        (f"<think>Both.</think>Wait.{PARIS}{ROME}", ["thinking", "text", "tool_use", "tool_use"]),
        (f"{ROME}and{PARIS}.", ["tool_use", "text", "tool_use", "text"]),
        ("<tool_call>\n<function=now>\n</function>\n</tool_call>", ["tool_use"]),
    ],
)
def test_events_add_up_to_the_message_whatever_a_step_brings(server, text, types):
    body = asking(text, tools=TOOLS, thinking=ADAPTIVE)
    message = whole(server, body)
    assert [block["type"] for block in message["content"]] == types
    for step in range(1, 5):
        found = events(server, {**body, "top_k": step})
        assert found[0]["type"] == "message_start"
        blocks = blocks_in(found[2:-2])
        assert without_ids(blocks) == without_ids(message["content"])
        stop = found[-2]["delta"]
        assert stop == {key: message[key] for key in ("stop_reason", "stop_sequence")}
        assert found[-2]["usage"]["output_tokens"] == message["usage"]["output_tokens"]


def test_calls_have_ids_of_their_own_and_typed_arguments(server):
    message = whole(server, asking(PARIS + ROME, tools=TOOLS))
    paris, rome = message["content"]
    assert paris["input"] == PARIS_ARGUMENTS
    assert rome["input"] == {"location": "Rome"}
    assert paris["id"] != rome["id"]
    assert paris["id"].startswith("toolu_")
    assert message["stop_reason"] == "tool_use"


def test_arguments_arrive_while_they_are_written(server):
    long = ROME.replace("Rome", "one two three four five six")
    found = events(server, asking(long, tools=TOOLS))
    assert sum(event["type"] == "content_block_delta" for event in found) > 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "fields", "reason", "sequence"),
    [
        ("one two three", {"stop_sequences": ["x", " two"]}, "stop_sequence", " two"),
        ("one two three", {"max_tokens": 2}, "max_tokens", None),
        (ROME, {"stop_sequences": ["Rome"]}, "stop_sequence", "Rome"),
        (ROME, {"max_tokens": 5}, "max_tokens", None),
        (ROME.partition("</function>")[0], {}, "end_turn", None),
        ("x", {"max_tokens": 10**9}, "end_turn", None),
    ],
)
def test_why_an_answer_ended(server, stream, text, fields, reason, sequence):
    body = asking(text, tools=TOOLS, **fields)
    stop = events(server, body)[-2]["delta"] if stream else whole(server, body)
    assert (stop["stop_reason"], stop["stop_sequence"]) == (reason, sequence)


def test_an_answer_that_fills_the_context_says_so(server):
    text = "word " * 700
    counted = server.post(
        "/v1/messages/count_tokens", {"model": MODEL, "messages": asking(text)["messages"]}
    ).json()["input_tokens"]
    assert 1024 < counted < 2048
    message = whole(server, asking(text, max_tokens=4000))
    assert message["stop_reason"] == "model_context_window_exceeded"
    assert message["usage"]["output_tokens"] == 2048 - counted


def test_a_call_that_was_cut_has_the_arguments_that_are_whole(server):
    num_tokens = len(server.tokenizer.encode(PARIS.partition("3</parameter>")[0]))
    message = whole(server, asking(PARIS, tools=TOOLS, max_tokens=num_tokens))
    [call] = message["content"]
    assert call["input"] == {"location": PARIS_ARGUMENTS["location"]}
    assert message["stop_reason"] == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
def test_with_parallel_calls_disabled_the_answer_ends_with_its_first(server, stream):
    choice = {"type": "auto", "disable_parallel_tool_use": True}
    body = asking(f"a{ROME}b{PARIS}", tools=TOOLS, tool_choice=choice)
    if stream:
        found = events(server, body)
        content, reason = blocks_in(found[2:-2]), found[-2]["delta"]["stop_reason"]
    else:
        message = whole(server, body)
        content, reason = message["content"], message["stop_reason"]
    assert [block["type"] for block in content] == ["text", "tool_use"]
    assert reason == "tool_use"


def test_a_thought_that_is_not_shown_is_in_the_signature(server):
    body = asking("<think>Deep, é.</think>So.", thinking={**ADAPTIVE, "display": "omitted"})
    message = whole(server, body)
    found = events(server, body)
    assert blocks_in(found[2:-2]) == message["content"]
    [thought, _] = message["content"]
    assert thought["thinking"] == ""
    assert all("thinking" not in event.get("delta", {}) for event in found)
    shown = {"type": "thinking", "thinking": "Deep, é.", "signature": "unsigned"}
    counts = set()
    for block in (thought, shown):
        said = {"role": "assistant", "content": [block, {"type": "text", "text": "So."}]}
        asked = {"model": MODEL, "messages": [*USER, said, *USER]}
        counts.add(server.post("/v1/messages/count_tokens", asked).json()["input_tokens"])
    assert len(counts) == 1


def test_cached_tokens_are_not_among_the_input_tokens(server):
    body = asking("cached", system=[{"type": "text", "text": "S", "cache_control": {}}])
    first, second = (whole(server, body)["usage"] for _ in range(2))
    assert first["cache_read_input_tokens"] == 0
    assert second["cache_read_input_tokens"] >= 16
    total = second["input_tokens"] + second["cache_read_input_tokens"]
    assert total == first["input_tokens"]


def test_the_prompt_is_that_of_the_same_conversation_in_chat(server):
    """System prompt, history with a thought, calls, results in another order, and tools."""
    call = {"location": "Paris", "days": 3}
    body = {
        "model": MODEL,
        "system": [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}],
        "tools": [{**WEATHER, "description": "The weather"}],
        "thinking": ADAPTIVE,
        "messages": [
            {"role": "user", "content": "Hello"},
            {"role": "user", "content": [{"type": "text", "text": "there"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm", "signature": "unsigned"},
                    {"type": "text", "text": "Wait."},
                    {"type": "tool_use", "id": "a", "name": "get_weather", "input": call},
                    {"type": "tool_use", "id": "b", "name": "get_weather", "input": {}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "tool_result", "tool_use_id": "b", "content": "x", "is_error": True},
                    {"type": "tool_result", "tool_use_id": "a"},
                    {"type": "text", "text": "And?"},
                ],
            },
        ],
    }
    function = {"name": "get_weather", "description": "The weather"}
    function["parameters"] = WEATHER["input_schema"]
    calls = [
        {"id": id_, "type": "function", "function": {"name": "get_weather", "arguments": json_}}
        for id_, json_ in (("a", json.dumps(call)), ("b", "{}"))
    ]
    chat = {
        "tools": [{"type": "function", "function": function}],
        "messages": [
            {"role": "system", "content": "Be\nbrief."},
            {"role": "user", "content": "Hello\nthere"},
            {
                "role": "assistant",
                "content": "Wait.",
                "reasoning_content": "Hm",
                "tool_calls": calls,
            },
            {"role": "tool", "tool_call_id": "a", "content": ""},
            {"role": "tool", "tool_call_id": "b", "content": "Error: x"},
            {"role": "user", "content": "And?"},
        ],
    }
    counted = server.post("/v1/messages/count_tokens", body).json()["input_tokens"]
    assert counted == server.post("/tokenize", chat).json()["count"]
    # What has been asked for both ways is in the cache.
    server.post("/v1/chat/completions", {**chat, "max_tokens": 1})
    usage = whole(server, {**body, "max_tokens": 1})["usage"]
    assert usage["cache_read_input_tokens"] == (counted - 1) // 16 * 16


def test_an_answer_that_the_request_has_begun_goes_on(server):
    begun = {"role": "assistant", "content": "The answer is"}
    asked = {"model": MODEL, "messages": [*USER, begun]}
    counted = server.post("/v1/messages/count_tokens", asked).json()["input_tokens"]
    chat = [*USER, {**begun, "reasoning_content": ""}]
    open_end = {"messages": chat, "continue_final_message": True, "add_generation_prompt": False}
    assert counted == server.post("/tokenize", open_end).json()["count"]
    assert whole(server, {**asked, "max_tokens": 3})["stop_reason"] == "max_tokens"


def test_the_choice_of_a_tool_decides_which_are_shown(server):
    def count(**fields):
        response = server.post(
            "/v1/messages/count_tokens", {"model": MODEL, "messages": USER} | fields
        )
        assert response.status_code == 200, response.text
        return response.json()["input_tokens"]

    none, auto, forced = (
        count(tools=TOOLS, tool_choice=choice)
        for choice in ({"type": "none"}, {"type": "auto"}, {"type": "tool", "name": "now"})
    )
    assert none == count()
    assert auto == count(tools=TOOLS) == count(tools=TOOLS, tool_choice={"type": "any"})
    assert forced == count(tools=[NOW])
    assert none < forced < auto


def part(**block):
    return {"messages": [{"role": "user", "content": [block]}]}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"max_tokens": None}, "max_tokens: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"messages": []}, "messages: "),
        ({"messages": "x"}, "messages: "),
        ({"model": None}, "model: "),
        ({"seed": 1}, "seed: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "0.role"),
        (part(type="text"), "messages.0.content.0.text.text: "),
        (part(type="text", text="x", y=1), "content.0.text.y: "),
        (part(type="server_tool_use"), "messages.0.content.0: "),
        (
            part(type="image", source={"type": "file", "file_id": "f"}),
            "messages.0.content.0.image.source: ",
        ),
        (
            part(type="image", source={"type": "url", "url": "data:image/png;base64,AAAA"}),
            "text",
        ),
        (
            part(type="document", source={"type": "base64", "data": "", "media_type": "x"}),
            "this model reads no PDF",
        ),
        (
            part(type="tool_result", tool_use_id="x"),
            "messages.0.content.0.tool_use_id: 'x'",
        ),
        (
            {"tools": [{"type": "bash_20250124", "name": "bash"}]},
            "tools.0: bash_20250124 is a tool that Anthropic",
        ),
        (
            {"tools": [{"name": "f", "input_schema": {"type": 3}}]},
            "input_schema",
        ),
        ({"tools": [NOW, NOW]}, "already the name"),
        ({"tool_choice": {"type": "any"}}, "has no tool to be called"),
        (
            {"tools": TOOLS, "tool_choice": {"type": "tool", "name": "f"}},
            "has no tool named 'f'",
        ),
        ({"tool_choice": {"type": "tool"}}, "name goes with"),
        ({"tool_choice": {"type": "required"}}, "tool_choice.type"),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 100}},
            "thinking.enabled.budget_tokens: ",
        ),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 2000}, "max_tokens": 2000},
            "must be greater than thinking.budget_tokens",
        ),
        ({"thinking": {"type": "between_tools"}}, "thinking: "),
        (
            {"output_config": {"format": {"type": "json_schema", "schema": {"type": 3}}}},
            "output_config.format",
        ),
        ({"mcp_servers": [{}]}, "mcp_servers: this server does not"),
        ({"temperature": -1}, "temperature"),
        ({"top_k": 666}, "refuses the seed 666"),
        ({"top_k": 666, "stream": True}, "refuses the seed 666"),
        ({"messages": [{"role": "user", "content": "7 " * 3000}]}, "prompt is too long: "),
    ],
)
def test_what_cannot_be_served_is_a_400_that_says_why(server, fields, message):
    error = error_to(server, fields, 400)
    assert error["type"] == "invalid_request_error"
    assert message in error["message"]


def test_a_model_that_is_not_there_and_an_engine_that_fails(server):
    assert error_to(server, {"model": "claude"}, 404)["type"] == "not_found_error"
    assert error_to(server, {"top_k": 14}, 500)["type"] == "api_error"


def error_to(server, fields, status):
    body = {"model": MODEL, "max_tokens": 5, "messages": USER} | fields
    given = {key: value for key, value in body.items() if value is not None}
    response = server.post("/v1/messages", given)
    assert response.status_code == status, response.text
    answer = response.json()
    assert answer.keys() == {"type", "error", "request_id"}
    assert answer["type"] == "error"
    assert answer["request_id"] == response.headers["request-id"]
    return answer["error"]


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "kind"),
    [
        ("POST", "/v1/messages", b"{", 400, "invalid_request_error"),
        ("POST", "/v1/messages/count_tokens", b"[]", 400, "invalid_request_error"),
        (
            "POST",
            "/v1/messages/count_tokens",
            b'{"model": "\\ud800"}',
            400,
            "invalid_request_error",
        ),
        ("GET", "/v1/messages", b"", 405, "invalid_request_error"),
        ("POST", "/v1/messages/batches", b"{}", 404, "not_found_error"),
    ],
)
def test_other_http_errors_have_the_same_shape(server, method, path, content, status, kind):
    headers = {"content-type": "application/json"}
    response = httpx.request(method, f"{server.url}{path}", content=content, headers=headers)
    assert response.status_code == status
    assert response.json()["error"]["type"] == kind
    assert response.json()["request_id"] == response.headers["request-id"]


def test_a_full_queue_is_an_overload_and_a_dead_engine_an_event(tmp_path):
    limits = SchedulerConfig(max_num_seqs=1, max_queue_len=1)
    with FakeServer(tmp_path, scheduler=limits, step_s=0.05) as server:
        endless = {"prompt": "a b c", "n": 2, "max_tokens": 3000, "ignore_eos": True}
        with server.begun_stream("/v1/completions", endless):
            response = server.post("/v1/messages", asking("x"))
        assert response.status_code == 529
        assert response.json()["error"]["type"] == "overloaded_error"
        until(lambda: server.metric("mimo_engine_preemptions_total") == 2)
        with server.begun_stream("/v1/messages", LONG) as lines:
            os.kill(server.engine.engine_pid, signal.SIGKILL)
            name, data = [line for line in lines if line][-2:]
        assert name == "event: error"
        error = json.loads(data.removeprefix("data: "))
        assert (error["type"], error["error"]["type"]) == ("error", "api_error")
        assert error["request_id"].startswith("req_")


def test_a_client_that_leaves_its_stream_ends_the_work(tmp_path):
    with FakeServer(tmp_path, step_s=0.05) as server:
        with server.begun_stream("/v1/messages", LONG):
            pass
        until(lambda: server.metric("mimo_engine_preemptions_total") == 1)
