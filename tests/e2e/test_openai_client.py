"""OpenAI's own client on the demo model: chat, streams, tools in two turns, completions."""

import json

import openai
import pytest
from demo_server import demo_text_server
from fake_server import MODEL

SUM = [{"role": "user", "content": "What is 47 + 85?"}]
THOUGHT = "47+85: ones 7+5=12 carry 1; tens 4+8+1=13 carry 1; so 132"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}


@pytest.fixture(scope="module")
def client():
    with demo_text_server() as server, server.openai() as client:
        yield client


def chat(client, messages, **options):
    return client.chat.completions.create(
        model=MODEL, messages=messages, temperature=0, max_tokens=100, **options
    )


def message_of(stream):
    """What the chunks of a stream say together, as a message of the history."""
    message, calls, reason = {"role": "assistant", "content": ""}, {}, None
    for chunk in stream:
        [choice] = chunk.choices
        reason = choice.finish_reason or reason
        message["content"] += choice.delta.content or ""
        for piece in choice.delta.tool_calls or ():
            call = calls.setdefault(piece.index, {"type": "function", "function": {}})
            call["id"] = piece.id or call["id"]
            function = call["function"]
            function["name"] = piece.function.name or function["name"]
            function["arguments"] = function.get("arguments", "") + piece.function.arguments
    if calls:
        message["tool_calls"] = list(calls.values())
    return message, reason


def test_a_sum_is_thought_about_and_answered(client):
    [choice] = chat(client, SUM).choices
    assert choice.message.content == "132"
    assert choice.message.reasoning_content == THOUGHT
    assert choice.finish_reason == "stop"


def test_a_stream_says_the_same_and_counts_its_tokens(client):
    chunks = list(chat(client, SUM, stream=True, stream_options={"include_usage": True}))
    *said, last = chunks
    deltas = [chunk.choices[0].delta for chunk in said]
    assert "".join(delta.content or "" for delta in deltas) == "132"
    assert "".join(delta.reasoning_content or "" for delta in deltas) == THOUGHT
    assert said[-1].choices[0].finish_reason == "stop"
    assert last.usage.completion_tokens == chat(client, SUM).usage.completion_tokens


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("question", "city", "answer"),
    [
        ("How warm is it in London?", "London", "It is 17 degrees in London."),
        ("How strong is the wind in Madrid?", "Madrid", "The wind in Madrid is 32 km per hour."),
    ],
)
def test_a_tool_is_called_and_what_it_returns_is_told(client, stream, question, city, answer):
    messages = [{"role": "user", "content": question}]
    for turn in range(2):
        result = chat(client, messages, tools=[WEATHER], stream=stream)
        if stream:
            message, reason = message_of(result)
        else:
            [choice] = result.choices
            message, reason = choice.message.model_dump(exclude_none=True), choice.finish_reason
        if turn == 0:
            assert reason == "tool_calls"
            [call] = message["tool_calls"]
            assert call["function"]["name"] == "get_weather"
            assert json.loads(call["function"]["arguments"]) == {"city": city}
            found = json.dumps({"degrees": 17, "wind": 32})
            messages += [
                message,
                {"role": "tool", "tool_call_id": call["id"], "content": found},
            ]
    assert reason == "stop"
    assert message["content"] == answer


def test_the_best_of_some_completions_is_the_likeliest(client):
    options = {"model": MODEL, "prompt": "The river", "max_tokens": 8, "seed": 5}
    every = client.completions.create(n=4, logprobs=0, **options).choices
    means = [sum(c.logprobs.token_logprobs) / len(c.logprobs.tokens) for c in every]
    [best] = client.completions.create(best_of=4, **options).choices
    assert best.text == every[means.index(max(means))].text


def test_a_prompt_with_its_answer_has_a_log_probability_for_each_token(client):
    [choice] = client.completions.create(
        model=MODEL, prompt="one two", echo=True, logprobs=1, max_tokens=3
    ).choices
    assert choice.text.startswith("one two")
    assert choice.logprobs.token_logprobs[0] is None
    assert all(value <= 0 for value in choice.logprobs.token_logprobs[1:])
    assert choice.text.startswith("".join(choice.logprobs.tokens)[: len("one two")])


def test_errors_are_those_of_the_client(client):
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=MODEL, messages=SUM, temperature=-1)
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="another", messages=SUM)
