"""The official client's Responses API against the demo model."""

import json

import openai
import pytest
from demo_server import (
    WEATHER_ANSWER,
    WEATHER_ARGUMENTS,
    WEATHER_QUESTION,
    WEATHER_RESULT,
    WEATHER_TOOLS,
    demo_text_server,
)
from fake_server import MODEL
from pydantic import BaseModel

SUM = "What is 47 + 85?"
THOUGHT = "47+85: ones 7+5=12 carry 1; tens 4+8+1=13 carry 1; so 132"
TOOLS = [{"type": "function", "strict": True, **tool} for tool in WEATHER_TOOLS]


@pytest.fixture(scope="module")
def server():
    with demo_text_server() as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.openai() as client:
        yield client


def ask(client, input, **kwargs):
    return client.responses.create(model=MODEL, input=input, temperature=0, **kwargs)


def test_an_answer_is_a_thought_and_a_message(client):
    response = ask(client, SUM, metadata={"for": "a test"}, max_output_tokens=200)
    thought, message = response.output
    assert (thought.type, thought.content[0].text, thought.summary) == ("reasoning", THOUGHT, [])
    assert (message.type, message.role, message.status) == ("message", "assistant", "completed")
    assert (response.output_text, response.status) == ("132", "completed")
    assert (response.metadata, response.max_output_tokens) == ({"for": "a test"}, 200)
    usage = response.usage
    assert usage.total_tokens == usage.input_tokens + usage.output_tokens
    assert 0 < usage.output_tokens_details.reasoning_tokens < usage.output_tokens


def test_without_effort_there_is_no_thought(client):
    response = ask(client, SUM, reasoning={"effort": "none"})
    assert [item.type for item in response.output] == ["message"]
    assert response.usage.output_tokens_details.reasoning_tokens == 0


def test_a_stream_adds_up_to_the_whole(client):
    whole = ask(client, SUM)
    with client.responses.stream(model=MODEL, input=SUM, temperature=0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert (events[0].type, events[-1].type) == ("response.created", "response.completed")

    def said(kind):
        return "".join(event.delta for event in events if event.type == kind)

    assert said("response.reasoning_text.delta") == THOUGHT
    assert said("response.output_text.delta") == final.output_text == whole.output_text


@pytest.mark.parametrize(("streamed", "stored"), [(False, True), (True, False)])
def test_two_turns_with_a_tool(client, streamed, stored):
    def turn(input, **kwargs):
        if not streamed:
            return ask(client, input, tools=TOOLS, **kwargs)
        with client.responses.stream(
            model=MODEL, input=input, temperature=0, tools=TOOLS, **kwargs
        ) as stream:
            return stream.get_final_response()

    first = turn(WEATHER_QUESTION, store=stored)
    [call] = [item for item in first.output if item.type == "function_call"]
    assert (call.name, json.loads(call.arguments)) == ("get_weather", WEATHER_ARGUMENTS)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": WEATHER_RESULT}
    if stored:
        second = turn([result], previous_response_id=first.id)
    else:
        second = turn(
            [{"role": "user", "content": WEATHER_QUESTION}, *first.output, result], store=False
        )
    assert second.output_text == WEATHER_ANSWER


def test_a_demanded_call_has_arguments_by_the_schema(client):
    response = ask(
        client, "Rome", tools=TOOLS, tool_choice={"type": "function", "name": "forecast"}
    )
    call = response.output[-1]
    assert call.type == "function_call"
    assert set(json.loads(call.arguments)) == {"location", "days"}


def test_a_conversation_goes_on_by_its_id(server, client):
    first = ask(client, SUM)
    second = ask(client, "What is 12 + 30?", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    # The model has read the thought of the first turn, as chat would show it.
    messages = [
        {"role": "user", "content": SUM},
        {"role": "assistant", "content": "132", "reasoning_content": THOUGHT},
        {"role": "user", "content": "What is 12 + 30?"},
    ]
    tokens = server.post("/tokenize", {"messages": messages}).json()["tokens"]
    assert second.usage.input_tokens == len(tokens)


class Person(BaseModel):
    name: str
    age: int


PERSON = "Tom lives in Oslo. Tom is 34 years old."


def test_an_answer_in_a_form(client):
    parsed = client.responses.parse(model=MODEL, input=PERSON, text_format=Person, temperature=0)
    assert isinstance(parsed.output_parsed, Person)
    with client.responses.stream(
        model=MODEL, input=PERSON, text_format=Person, temperature=0
    ) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_what_is_kept_can_be_had_and_deleted(client):
    first = ask(client, SUM)
    second = ask(client, "What is 12 + 30?", previous_response_id=first.id)
    assert client.responses.retrieve(first.id) == first
    items = client.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["message", "reasoning", "message", "message"]
    assert items[0].content[0].text == SUM
    assert client.responses.input_items.list(first.id).data[0].id == items[0].id
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="synchronous"):
        client.responses.cancel(second.id)
    # The conversation is still all there.
    third = ask(client, SUM, previous_response_id=second.id)
    assert third.usage.input_tokens > second.usage.total_tokens


def test_what_was_not_to_be_kept_is_not(client):
    response = ask(client, SUM, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(response.id)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, SUM, previous_response_id=response.id)
    assert caught.value.code == "previous_response_not_found"
