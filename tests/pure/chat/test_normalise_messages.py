"""What clients send is brought into the form that templates expect, or refused by name."""

import copy

import pytest

from mimo_engine.chat.template import normalise_messages
from mimo_engine.errors import RequestError


def call(arguments):
    return {"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}


def assistant(**fields):
    return {"role": "assistant", "content": "", **fields}


def test_null_and_missing_content_become_empty():
    messages = [{"role": "user", "content": None}, {"role": "assistant"}]
    assert [message["content"] for message in normalise_messages(messages)] == ["", ""]


def test_the_request_is_left_as_it_was():
    messages = [assistant(reasoning="r", tool_calls=[call('{"a": 1}')])]
    before = copy.deepcopy(messages)
    normalise_messages(messages)
    assert messages == before


def test_arguments_become_an_object():
    (message,) = normalise_messages([assistant(tool_calls=[call('{"a": [1]}'), call({"b": 2})])])
    assert [c["function"]["arguments"] for c in message["tool_calls"]] == [{"a": [1]}, {"b": 2}]


@pytest.mark.parametrize("arguments", ["", None, "{}"])
def test_a_call_without_parameters_may_have_no_arguments(arguments):
    (message,) = normalise_messages([assistant(tool_calls=[call(arguments)])])
    assert message["tool_calls"][0]["function"]["arguments"] == {}


@pytest.mark.parametrize("arguments", [" ", "{", "[1]", "null", '"x"', "[" * 100_000, 3])
def test_arguments_that_are_no_object_are_refused(arguments):
    with pytest.raises(RequestError, match=r"messages\[0\].tool_calls\[0\].function.arguments"):
        normalise_messages([assistant(tool_calls=[call(arguments)])])


def test_arguments_longer_than_any_context_are_not_parsed():
    with pytest.raises(RequestError, match="has 4194311 characters"):
        normalise_messages([assistant(tool_calls=[call('{"a":"' + "b" * 2**22 + '"')])])


@pytest.mark.parametrize("calls", ["x", {"a": 1}, [1], [{}], [{"function": {"arguments": "{}"}}]])
def test_malformed_calls_are_refused(calls):
    with pytest.raises(RequestError, match=r"messages\[0\].tool_calls"):
        normalise_messages([assistant(tool_calls=calls)])


@pytest.mark.parametrize("calls", [None, []])
def test_no_calls_are_no_field(calls):
    assert normalise_messages([assistant(tool_calls=calls)]) == [assistant()]


def test_tool_parts_are_joined_with_single_spaces():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert normalise_messages([{"role": "tool", "content": parts}])[0]["content"] == "a b"


def test_input_audio_becomes_audio_and_keeps_its_data():
    part = {"type": "input_audio", "input_audio": {"data": "AA==", "format": "wav"}}
    (message,) = normalise_messages([{"role": "user", "content": [part]}])
    assert message["content"] == [{**part, "type": "audio"}]


def test_thinking_parts_become_reasoning():
    parts = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "yes"}]
    (message,) = normalise_messages([{"role": "assistant", "content": parts}])
    assert message["reasoning_content"] == "hm"
    assert message["content"] == [{"type": "text", "text": "yes"}]


def test_reasoning_is_another_name_and_reasoning_content_wins():
    both = assistant(reasoning="b", reasoning_content="a")
    messages = normalise_messages([assistant(reasoning="r"), both, assistant(reasoning=None)])
    assert messages == [
        assistant(reasoning_content="r"),
        assistant(reasoning_content="a"),
        assistant(),
    ]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"content": "x"}, "role"),
        ({"role": "user", "content": 3}, "content"),
        ({"role": "user", "content": ["x"]}, r"content\[0\]"),
        ({"role": "user", "content": [{"type": "file", "file": {}}]}, r"content\[0\]"),
        ({"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}, r"content\[0\]"),
        ({"role": "user", "content": [{"type": "text", "text": None}]}, r"content\[0\].text"),
    ],
)
def test_what_no_template_can_show_is_refused_by_name(message, field):
    with pytest.raises(RequestError, match=rf"messages\[0\].{field}") as caught:
        normalise_messages([message])
    assert caught.value.param == "messages"


def calls_of(*ids):
    calls = [{**call("{}"), "id": one} for one in ids]
    return assistant(tool_calls=calls)


def result_of(one, content="x"):
    return {"role": "tool", "tool_call_id": one, "content": content}


def test_results_come_in_the_order_of_their_calls():
    messages = [
        calls_of("a", "b", "c"),
        *(result_of(one, one) for one in "cab"),
        calls_of("b", "a"),
        *(result_of(one, one) for one in "ab"),
    ]
    found = [m["content"] for m in normalise_messages(messages) if m["role"] == "tool"]
    assert found == ["a", "b", "c", "b", "a"]


@pytest.mark.parametrize(
    ("ids", "answered"),
    [(("a", None), "ba"), (("a", "a"), "aa"), (("a", "b"), (None, "a")), (("a", "b"), "a")],
)
def test_results_that_ids_do_not_place_stay_where_they_are(ids, answered):
    results = [result_of(one, str(i)) for i, one in enumerate(answered)]
    assert normalise_messages([calls_of(*ids), *results])[1:] == results


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([calls_of("a"), result_of("b")], r"messages\[1\].tool_call_id is 'b'"),
        ([assistant(), result_of("a")], r"messages\[1\].tool_call_id is 'a'"),
        ([{"role": "user", "tool_calls": "x"}, result_of("a")], r"messages\[1\].tool_call_id"),
        ([result_of("a")], r"messages\[0\].tool_call_id is 'a'"),
        ([calls_of("a", "b"), result_of("a"), result_of("a")], "two results of one tool call"),
        ([calls_of({}), result_of("a")], "id of a tool call is a string"),
        ([calls_of("a", "b"), result_of("b")], "'a' has no result"),
    ],
)
def test_results_that_ids_cannot_place_are_refused(messages, said):
    with pytest.raises(RequestError, match=said):
        normalise_messages(messages)
