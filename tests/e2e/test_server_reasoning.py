"""Reasoning over HTTP: separated, counted and switched, on an engine that follows a script."""

import pytest
from fake_server import FakeServer, scripted

from mimo_engine.config.server import ThinkingConfig

THOUGHT = "<think>First, a < b.\n</think>So 42."
CALL = "<tool_call><function=f></function></tool_call>"
TOOL = {"type": "function", "function": {"name": "f"}}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FakeServer(tmp_path_factory.mktemp("model")) as server:
        yield server


def ask(server, text, **fields):
    """The whole response to a conversation that the engine answers with `text`."""
    messages = [{"role": "user", "content": "Why?" + scripted(text)}]
    response = server.post("/v1/chat/completions", {"messages": messages, **fields})
    assert response.status_code == 200, response.text
    return response.json()


def message(server, text, **fields):
    found = ask(server, text, **fields)["choices"][0]["message"]
    return found["reasoning_content"], found["content"]


def deltas(server, text, **fields):
    """The deltas of a stream, without the first and the last; the usage of the stream."""
    messages = [{"role": "user", "content": "Why?" + scripted(text)}]
    body = {"messages": messages, "stream_options": {"include_usage": True}, **fields}
    chunks = server.chunks("/v1/chat/completions", body)
    usage = chunks.pop()["usage"]
    found = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert found[0] == {"role": "assistant", "content": "", "reasoning_content": None}
    assert found[-1] == {"reasoning_content": None}
    return found[1:-1], usage


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        (THOUGHT, "First, a < b.\n", "So 42."),
        ("So 42.", None, "So 42."),
        ("<think></think>So 42.", None, "So 42."),
        ("<think>and then", "and then", ""),
        ("\n<think>a</think>\nb", "a", "\nb"),
        (f"<think>{CALL}</think>b", CALL, "b"),
    ],
)
def test_reasoning_and_content_are_apart_for_any_tokens_of_a_step(server, text, reasoning, content):
    assert message(server, text) == (reasoning, content)
    for step in range(1, 5):
        found, _ = deltas(server, text, seed=step)
        assert "".join(delta.get("content", "") for delta in found) == content
        parts = [delta["reasoning_content"] for delta in found if delta["reasoning_content"]]
        assert ("".join(parts) or None) == reasoning
        assert all("content" not in d for d in found if d["reasoning_content"])


def test_an_unended_thought_is_reasoning_with_finish_reason_length(server):
    choice = ask(server, THOUGHT, max_tokens=3)["choices"][0]
    assert choice["message"]["content"] == ""
    assert THOUGHT.removeprefix("<think>").startswith(choice["message"]["reasoning_content"])
    assert choice["finish_reason"] == "length"


def test_left_together_the_content_has_the_tags(server):
    for text in (THOUGHT, "<think></think>x", "<think>and then", "a</think>b</think>"):
        assert message(server, text, separate_reasoning=False) == (None, text)
        found, _ = deltas(server, text, separate_reasoning=False, seed=2)
        assert "".join(delta["content"] for delta in found) == text


def test_reasoning_that_is_not_streamed_is_one_delta_at_its_end(server):
    for text in (THOUGHT, "<think>only a thought", f"<think>short{CALL}"):
        found, _ = deltas(server, text, stream_reasoning=False, tools=[TOOL], seed=1)
        reasoning = message(server, text, tools=[TOOL])[0]
        assert [d["reasoning_content"] for d in found if d["reasoning_content"]] == [reasoning]
        assert found[0]["reasoning_content"] == reasoning


def test_thinking_is_off_where_the_prompt_says_so_not_the_request(server):
    # The template's own switch is what counts; this other one means nothing to it.
    kwargs = {"chat_template_kwargs": {"thinking": False}}
    assert message(server, THOUGHT, **kwargs) == ("First, a < b.\n", "So 42.")
    kwargs = {"chat_template_kwargs": {"enable_thinking": False}}
    assert message(server, "<think>x", **kwargs) == (None, "<think>x")


def test_tokens_of_reasoning_are_counted_from_tag_to_tag(server):
    num_tokens = len(server.tokenizer.encode("<think>First, a < b.\n</think>"))
    for fields in ({}, {"seed": 3}, {"separate_reasoning": False}):
        for usage in (
            ask(server, THOUGHT, **fields)["usage"],
            deltas(server, THOUGHT, **fields)[1],
        ):
            assert usage["reasoning_tokens"] == num_tokens
            assert usage["completion_tokens_details"] == {"reasoning_tokens": num_tokens}
            assert usage["completion_tokens"] > num_tokens
    usage = ask(server, THOUGHT, n=2, seed=1)["usage"]
    assert usage["reasoning_tokens"] == 2 * num_tokens
    assert ask(server, "<think>and", max_tokens=2)["usage"]["reasoning_tokens"] == 2
    for text, fields in (
        ("So 42.", {}),
        ("x<think>y</think>", {}),
        (THOUGHT, {"reasoning_effort": "none"}),
    ):
        usage = ask(server, text, **fields)["usage"]
        assert usage["reasoning_tokens"] == 0
        assert "completion_tokens_details" not in usage


def test_logprobs_cover_reasoning_and_come_once(server):
    ids = server.tokenizer.encode(THOUGHT)
    messages = [{"role": "user", "content": scripted(THOUGHT)}]
    for step in range(1, 5):
        body = {"messages": messages, "logprobs": True, "seed": step}
        chunks = server.chunks("/v1/chat/completions", body)
        choices = [chunk["choices"][0] for chunk in chunks]
        streamed = [
            e for choice in choices for e in (choice["logprobs"] or {"content": []})["content"]
        ]
        [choice] = ask(server, THOUGHT, logprobs=True, seed=step)["choices"]
        assert streamed == choice["logprobs"]["content"]
        assert len(streamed) == len(ids) + 1
        assert streamed[0]["token"] == "<think>"


def test_a_continued_message_goes_on_as_content(server):
    messages = [
        {"role": "user", "content": scripted("<think>upon a time")},
        {"role": "assistant", "content": "Once "},
    ]
    body = {"messages": messages, "continue_final_message": True}
    choice = server.post("/v1/chat/completions", body).json()["choices"][0]
    assert choice["message"]["content"] == "<think>upon a time"
    assert choice["message"]["reasoning_content"] is None


def test_a_thought_that_the_prompt_has_begun_goes_on_as_reasoning(server):
    messages = [
        {"role": "user", "content": scripted(" see.</think>Yes.")},
        {"role": "assistant", "content": "<think>Let me"},
    ]
    body = {"messages": messages, "continue_final_message": True}
    result = server.post("/v1/chat/completions", body).json()
    message = result["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == (" see.", "Yes.")
    num_tokens = len(server.tokenizer.encode(" see.</think>"))
    assert result["usage"]["reasoning_tokens"] == num_tokens


def test_a_stop_string_counts_in_reasoning_too(server):
    choice = ask(server, THOUGHT, stop="a <")["choices"][0]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("First, ", "")
    assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", "a <")


def test_a_call_in_a_thought_is_rescued_or_left_as_the_server_is_told(server, tmp_path):
    text = f"<think>go {CALL}"
    choice = ask(server, text, tools=[TOOL])["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["reasoning_content"] == "go "
    with FakeServer(tmp_path, thinking=ThinkingConfig(tool_call_in_thinking="leave")) as other:
        choice = ask(other, text, tools=[TOOL])["choices"][0]
        assert choice["finish_reason"] == "stop"
        assert choice["message"]["reasoning_content"] == f"go {CALL}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"thinking_token_budget": 0}, "thinking_token_budget"),
        ({"thinking_token_budget": "x"}, "thinking_token_budget"),
        ({"enable_thinking": "no"}, "enable_thinking"),
        ({"include_reasoning": False}, "include_reasoning"),
    ],
)
def test_a_bad_switch_is_a_400_that_names_it(server, fields, param):
    body = {"messages": [{"role": "user", "content": "x"}], **fields}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
