"""Guards over HTTP: endless repetition, too many calls, images of long ago."""

import logging

import pytest
from fake_server import MODEL, FakeServer, scripted

from mimo_engine.chat.loop_guard import bound
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.server import GuardConfig

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
START, UNIT = "So it goes: ", "no, wait. "
LOOP = START + UNIT * 80
CLOCK = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
NOW = {"type": "function", "function": {"name": "now"}}


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    def start(**guards):
        scheduler = SchedulerConfig(max_model_len=16384)
        directory = tmp_path_factory.mktemp("model")
        return FakeServer(directory, scheduler=scheduler, guards=GuardConfig(**guards))

    return start


@pytest.fixture(scope="module")
def reporting(serve):
    with serve(max_tool_calls=2, keep_images=0) as server:
        yield server


@pytest.fixture(scope="module")
def stopping(serve):
    with serve(loop_guard="stop") as server:
        yield server


def body_of(path, text, **fields):
    if path == CHAT:
        return {"messages": [{"role": "user", "content": "Go." + scripted(text)}], **fields}
    return {"prompt": scripted(text), **fields}


def ask(server, path, text, **fields):
    response = server.post(path, body_of(path, text, **fields))
    assert response.status_code == 200, response.text
    return response.json()


def said(path, choice):
    return choice["message"]["content"] if path == CHAT else choice["text"]


def streamed(server, path, text, **fields):
    """(text, finish reasons, usage, number of logprobs) of a stream's only choice."""
    body = body_of(path, text, stream_options={"include_usage": True}, **fields)
    *chunks, last = server.chunks(path, body)
    choices = [chunk["choices"][0] for chunk in chunks]
    pieces = [c.get("text") or c.get("delta", {}).get("content") or "" for c in choices]
    logprobs = [choice["logprobs"] or {} for choice in choices]
    num_logprobs = sum(len(one.get("content") or one.get("tokens") or ()) for one in logprobs)
    reasons = [c["finish_reason"] for c in choices if c["finish_reason"] is not None]
    return "".join(pieces), reasons, last["usage"], num_logprobs


def loop_of(server):
    """(the period of LOOP in tokens, how many tokens make it a loop)."""
    ids = server.tokenizer.encode(LOOP)[:-20]  # the last unit may have other tokens
    period = next(p for p in range(1, 64) if ids[-256:-p] == ids[p - 256 :])
    begin = len(ids) - period
    while begin and ids[begin - 1] == ids[begin - 1 + period]:
        begin -= 1
    assert begin + bound(period) < len(ids)
    return period, begin + bound(period)


def counted(server, action):
    return server.metric(f'mimo_engine_loops_total{{action="{action}"}}') or 0


@pytest.mark.parametrize("path", [CHAT, TEXT])
def test_a_loop_is_reported_once_without_its_text_and_goes_on(reporting, path, caplog):
    before = counted(reporting, "report")
    with caplog.at_level(logging.INFO):
        result = ask(reporting, path, LOOP, max_tokens=4000)
    choice = result["choices"][0]
    assert (said(path, choice), choice["finish_reason"]) == (LOOP, "stop")
    assert counted(reporting, "report") == before + 1
    [line] = [record.getMessage() for record in caplog.records if "repeats" in record.msg]
    period, end = loop_of(reporting)
    assert f"a period of {period} tokens, seen at token {end} (report)" in line
    assert "wait" not in caplog.text


def test_to_anthropics_clients_a_stopped_loop_is_an_answer_that_was_cut(stopping):
    body = body_of(CHAT, LOOP, model=MODEL, max_tokens=4000)
    message = stopping.post("/v1/messages", body).json()
    assert message["stop_reason"] == "max_tokens"
    assert message["usage"]["output_tokens"] == loop_of(stopping)[1]


@pytest.mark.parametrize("path", [CHAT, TEXT])
@pytest.mark.parametrize("step", [1, 2, 5, 50])
def test_a_stopped_loop_ends_at_its_token_however_many_come_at_once(stopping, path, step):
    _, end = loop_of(stopping)
    text = stopping.tokenizer.decode(stopping.tokenizer.encode(LOOP)[:end])
    fields = {"seed": step, "max_tokens": 4000}
    fields |= {"logprobs": True} if path == CHAT else {"logprobs": 0}
    before = counted(stopping, "stop")
    result = ask(stopping, path, LOOP, **fields)
    choice = result["choices"][0]
    assert choice["finish_reason"] == "repetition_truncation"
    assert choice["matched_stop"] is None
    assert said(path, choice) == text
    assert len(choice["logprobs"].get("content") or choice["logprobs"]["tokens"]) == end
    assert result["usage"]["completion_tokens"] == end
    whole, reasons, usage, num_logprobs = streamed(stopping, path, LOOP, **fields)
    assert (whole, reasons, num_logprobs) == (text, ["repetition_truncation"], end)
    assert usage["completion_tokens"] == end
    assert counted(stopping, "stop") == before + 2
    # The engine was told.
    while stopping.metric('mimo_engine_kv_pages_used{group="full"}'):
        pass


def test_every_choice_has_a_guard_of_its_own_and_clients_see_the_reason(stopping):
    ended = 'mimo_engine_requests_total{finish_reason="repetition_truncation"}'
    before = stopping.metric(ended) or 0
    messages = [{"role": "user", "content": "Go." + scripted(LOOP)}]
    with stopping.openai() as client:
        answer = client.chat.completions.create(model=MODEL, messages=messages, n=3, seed=2)
    assert [choice.finish_reason for choice in answer.choices] == ["repetition_truncation"] * 3
    assert answer.usage.completion_tokens == 3 * loop_of(stopping)[1]
    assert stopping.metric(ended) == before + 3


def test_an_output_that_ends_by_itself_at_that_token_or_before_keeps_its_reason(stopping):
    _, end = loop_of(stopping)
    choice = ask(stopping, TEXT, LOOP, max_tokens=end)["choices"][0]
    assert choice["finish_reason"] == "length"
    before = counted(stopping, "stop")
    choice = ask(stopping, TEXT, LOOP, max_tokens=end - 1)["choices"][0]
    assert choice["finish_reason"] == "length"
    # In one update with the loop's token, but before it.
    text = START + UNIT * 2 + "HALT" + UNIT * 80
    choice = ask(stopping, TEXT, text, max_tokens=4000, seed=1000, stop="HALT")["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "HALT")
    assert counted(stopping, "stop") == before


def test_a_loop_in_a_thought_or_after_a_call_says_why_it_ended(stopping):
    choice = ask(stopping, CHAT, "<think>" + LOOP, max_tokens=4000)["choices"][0]
    assert choice["finish_reason"] == "repetition_truncation"
    assert choice["message"]["content"] == ""
    assert choice["message"]["reasoning_content"].startswith(START + UNIT)
    choice = ask(stopping, CHAT, CLOCK + LOOP, max_tokens=4000, tools=[NOW])["choices"][0]
    assert choice["finish_reason"] == "repetition_truncation"
    assert len(choice["message"]["tool_calls"]) == 1


def test_a_response_is_incomplete_for_that_reason(stopping):
    response = stopping.post("/v1/responses", {"input": "Go." + scripted(LOOP)}).json()
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "repetition_truncation"}
    assert response["usage"]["output_tokens"] == loop_of(stopping)[1]


def test_switched_off_it_does_nothing(serve):
    with serve(loop_guard="off") as server:
        choice = ask(server, TEXT, LOOP, max_tokens=4000)["choices"][0]
        assert (choice["text"], choice["finish_reason"]) == (LOOP, "stop")
        assert "mimo_engine_loops_total{" not in server.get("/metrics").text


@pytest.mark.parametrize(
    ("fields", "num_calls"),
    [
        ({}, 2),
        ({"max_tool_calls": 1}, 1),
        ({"max_tool_calls": 5}, 2),
        ({"max_tool_calls": 2, "parallel_tool_calls": False}, 1),
    ],
)
def test_an_answer_ends_with_the_last_call_it_may_have(reporting, fields, num_calls):
    text = f"a{CLOCK}b{CLOCK}c{CLOCK}d"
    before = reporting.metric("mimo_engine_tool_call_limits_total") or 0
    fields |= {"tools": [NOW], "max_tokens": 4000}
    choice = ask(reporting, CHAT, text, **fields)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == "ab"[:num_calls]
    calls = choice["message"]["tool_calls"]
    assert [call["function"]["name"] for call in calls] == ["now"] * num_calls
    for step in (1, 3, 500):
        whole, reasons, _, _ = streamed(reporting, CHAT, text, seed=step, **fields)
        assert (whole, reasons) == ("ab"[:num_calls], ["tool_calls"])
    assert (reporting.metric("mimo_engine_tool_call_limits_total") or 0) == before + 4


@pytest.mark.parametrize("rest", ["", "b", f"b{CLOCK}c"])
def test_tokens_behind_the_last_call_do_not_count_however_many_come_at_once(reporting, rest):
    """Whether the output has ended there or not."""
    found = []
    for step in (1, 2, 3, 5, 50):
        fields = {"tools": [NOW], "seed": step, "max_tool_calls": 1, "logprobs": True}
        counted_before = reporting.metric("mimo_engine_output_tokens_total")
        result = ask(reporting, CHAT, f"a{CLOCK}{rest}", **fields)
        choice, num_tokens = result["choices"][0], result["usage"]["completion_tokens"]
        assert (choice["finish_reason"], choice["matched_stop"]) == ("tool_calls", None)
        assert len(choice["logprobs"]["content"]) == num_tokens
        assert reporting.metric("mimo_engine_output_tokens_total") == counted_before + num_tokens
        _, _, usage, num_logprobs = streamed(reporting, CHAT, f"a{CLOCK}{rest}", **fields)
        assert num_logprobs == usage["completion_tokens"] == num_tokens
        found.append(num_tokens)
    assert found == found[:1] * 5
    assert found[0] < len(reporting.tokenizer.encode(f"a{CLOCK}"))


@pytest.mark.parametrize("step", [1, 3, 50])
def test_tokens_behind_a_stop_string_are_not_counted_as_output(reporting, step):
    before = reporting.metric("mimo_engine_output_tokens_total")
    result = ask(reporting, TEXT, "one two HALT three four", stop="HALT", seed=step)
    counted_tokens = reporting.metric("mimo_engine_output_tokens_total") - before
    assert result["usage"]["completion_tokens"] == counted_tokens


@pytest.mark.parametrize("step", [1, 3, 500])
def test_an_answer_that_has_all_its_calls_was_not_cut_by_what_comes_in_the_same_step(
    stopping, step
):
    num_tokens = len(stopping.tokenizer.encode(CLOCK))
    for text, max_tokens in ((CLOCK, num_tokens), (CLOCK + LOOP, 4000)):
        fields = {"tools": [NOW], "max_tokens": max_tokens, "seed": step, "max_tool_calls": 1}
        choice = ask(stopping, CHAT, text, **fields)["choices"][0]
        assert choice["finish_reason"] == "tool_calls"
        assert choice["message"]["content"] is None


def test_without_a_limit_of_the_server_the_requests_own_counts(stopping):
    text = CLOCK * 3
    for fields, num_calls in (({}, 3), ({"max_tool_calls": 2}, 2), ({"max_tool_calls": None}, 3)):
        choice = ask(stopping, CHAT, text, tools=[NOW], **fields)["choices"][0]
        assert len(choice["message"]["tool_calls"]) == num_calls
    for value in (0, True, "2", 1.5):
        response = stopping.post(CHAT, body_of(CHAT, text, tools=[NOW], max_tool_calls=value))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "max_tool_calls"


def test_a_removed_image_is_a_marker_in_the_text_and_nothing_of_it_is_read(reporting, stopping):
    # Neither an address nor base64, and this model has no eyes.
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}
    marker = {"type": "text", "text": "[image removed]"}
    ask_for = {"type": "text", "text": "What is it?"}
    ids = []
    before = reporting.metric("mimo_engine_images_removed_total")
    for server, part in ((reporting, image), (stopping, marker)):
        body = {"messages": [{"role": "user", "content": [part, ask_for]}]}
        response = server.post("/tokenize", body)
        assert response.status_code == 200, response.text
        ids.append(response.json()["tokens"])
        assert server.post(CHAT, {**body, "max_tokens": 1}).status_code == 200
    assert ids[0] == ids[1]
    assert "[image removed]What is it?" in reporting.tokenizer.decode(ids[0])
    # Once for each request.
    assert reporting.metric("mimo_engine_images_removed_total") == before + 2
    body = {"messages": [{"role": "user", "content": [image, ask_for]}]}
    assert stopping.post(CHAT, body).status_code == 400
