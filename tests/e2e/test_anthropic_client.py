"""Anthropic's own client against the demo model: what an application of the Messages API does."""

import base64
import json
from pathlib import Path

import anthropic
import pytest
from demo_server import demo_server
from fake_server import MODEL

DIGITS = Path(__file__).parents[2] / "examples" / "media" / "digits.png"
SUM = {"role": "user", "content": "What is 47 + 85?"}
THOUGHT = "47+85: ones 7+5=12 carry 1; tens 4+8+1=13 carry 1; so 132"
TRAIN = {
    "name": "next_train",
    "description": "Next train to a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
PLATFORM = {"role": "user", "content": "From which platform does the train to London leave?"}


@pytest.fixture(scope="module")
def client():
    with demo_server() as server, server.anthropic() as client:
        yield client


def with_defaults(messages, **kwargs):
    # The client has no argument for a temperature.
    given = {"model": MODEL, "max_tokens": 64, "extra_body": {"temperature": 0}}
    return {**given, "messages": messages, **kwargs}


def ask(client, *messages, **kwargs):
    return client.messages.create(**with_defaults(messages, **kwargs))


def text_of(message):
    [block] = message.content
    assert block.type == "text"
    return block.text


def picture_and_question():
    data = base64.b64encode(DIGITS.read_bytes()).decode()
    source = {"type": "base64", "media_type": "image/png", "data": data}
    question = {"type": "text", "text": "Which digits are shown?"}
    return {"type": "image", "source": source}, question


def test_a_message_about_a_picture(client):
    message = ask(client, {"role": "user", "content": [*picture_and_question()]})
    assert text_of(message) == "4 2 8"
    assert (message.type, message.role, message.model) == ("message", "assistant", MODEL)
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert message.id.startswith("msg_")
    assert message._request_id.startswith("req_")


def test_a_stream_ends_in_the_message_that_is_given_whole(client):
    thinking = {"type": "adaptive"}
    whole = ask(client, SUM, thinking=thinking)
    with client.messages.stream(**with_defaults([SUM], thinking=thinking)) as stream:
        texts = list(stream.text_stream)
        streamed = stream.get_final_message()
    assert "".join(texts) == "132"
    plain = [block.model_dump(exclude={"parsed_output"}) for block in streamed.content]
    assert plain == [block.model_dump() for block in whole.content]
    assert streamed.stop_reason == whole.stop_reason == "end_turn"
    assert streamed.usage.output_tokens == whole.usage.output_tokens


def test_a_thought_is_a_block_of_its_own_and_can_be_sent_back(client):
    thinking = {"type": "enabled", "budget_tokens": 1024}
    first = ask(client, SUM, thinking=thinking, max_tokens=2048)
    thought, answer = first.content
    assert (thought.type, thought.thinking, answer.text) == ("thinking", THOUGHT, "132")
    assert thought.signature
    assert 0 < first.usage.output_tokens_details.thinking_tokens < first.usage.output_tokens
    told = {"role": "assistant", "content": first.content}
    second = ask(client, SUM, told, {"role": "user", "content": "What is 21 + 17?"})
    prompt_len = first.usage.input_tokens + first.usage.cache_read_input_tokens
    assert second.usage.cache_read_input_tokens > prompt_len


def test_a_thought_that_is_not_shown_is_still_there_for_the_next_turn(client):
    def count(message):
        messages = [SUM, {"role": "assistant", "content": message.content}, SUM]
        return client.messages.count_tokens(model=MODEL, messages=messages).input_tokens

    hidden = ask(client, SUM, thinking={"type": "adaptive", "display": "omitted"})
    assert [block.type for block in hidden.content] == ["thinking", "text"]
    assert hidden.content[0].thinking == ""
    assert count(hidden) == count(ask(client, SUM, thinking={"type": "adaptive"}))


@pytest.mark.parametrize("stream", [False, True])
def test_a_conversation_of_two_turns_with_a_tool(client, stream):
    def turn(*messages):
        if not stream:
            return ask(client, *messages, tools=[TRAIN])
        with client.messages.stream(**with_defaults(messages, tools=[TRAIN])) as events:
            return events.get_final_message()

    first = turn(PLATFORM)
    assert first.stop_reason == "tool_use"
    [call] = first.content
    assert (call.type, call.name, call.input) == ("tool_use", "next_train", {"city": "London"})
    result = {
        "type": "tool_result",
        "tool_use_id": call.id,
        "content": json.dumps({"minutes": 48, "platform": 16}),
    }
    second = turn(
        PLATFORM,
        {"role": "assistant", "content": first.content},
        {"role": "user", "content": [result]},
    )
    assert text_of(second) == "The train to London leaves from platform 16."
    assert second.stop_reason == "end_turn"
    # The call was sent back as the model had written it.
    assert second.usage.cache_read_input_tokens > first.usage.output_tokens + 200


def test_a_tool_may_answer_with_a_picture(client):
    picture, question = picture_and_question()
    call = {"type": "tool_use", "id": "a", "name": "screenshot", "input": {}}
    result = {"type": "tool_result", "tool_use_id": "a", "content": [picture]}
    message = ask(
        client,
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": [call]},
        {"role": "user", "content": [result, question]},
    )
    assert text_of(message) == "4 2 8"


@pytest.mark.parametrize("streams", [False, True])
def test_the_clients_own_loop_of_tools(client, streams):
    """It asks for a thread, is told that there are none, and sends all messages."""
    cities = []

    @anthropic.beta_tool(**TRAIN)
    def next_train(city):
        cities.append(city)
        return json.dumps({"minutes": 48, "platform": 16})

    turns = client.beta.messages.tool_runner(
        **with_defaults([PLATFORM]), tools=[next_train], stream=streams
    )
    messages = [turn.get_final_message() if streams else turn for turn in turns]
    assert [message.stop_reason for message in messages] == ["tool_use", "end_turn"]
    assert cities == ["London"]
    assert text_of(messages[-1]) == "The train to London leaves from platform 16."


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "next_train"}])
def test_a_call_that_the_request_demands(client, choice):
    message = ask(client, SUM, tools=[TRAIN], tool_choice=choice)
    assert (message.content[0].type, message.content[0].name) == ("tool_use", "next_train")


def test_an_answer_in_json(client):
    schema = {
        "type": "object",
        "properties": {"sum": {"type": "integer"}},
        "required": ["sum"],
        "additionalProperties": False,
    }
    config = {"format": {"type": "json_schema", "schema": schema}}
    message = ask(client, SUM, output_config=config)
    assert isinstance(json.loads(text_of(message))["sum"], int)


def test_tokens_are_counted_as_they_are_then_used(client):
    asked = {"model": MODEL, "messages": [PLATFORM], "tools": [TRAIN], "system": "Be brief."}
    counted = client.messages.count_tokens(**asked).input_tokens
    usage = client.messages.create(**asked, max_tokens=1).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens


def test_errors_are_those_that_the_client_knows(client):
    with pytest.raises(anthropic.NotFoundError) as caught:
        ask(client, SUM, model="claude")
    assert caught.value.type == "not_found_error"
    assert caught.value.request_id == caught.value.body["request_id"]
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content"):
        ask(client, {"role": "user", "content": [{"type": "image"}]})
    with pytest.raises(anthropic.BadRequestError, match="prompt is too long"):
        ask(client, {"role": "user", "content": "7 " * 5000})
