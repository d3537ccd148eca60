"""Requests of the Messages API as requests for chat."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from mimo_engine.errors import RequestError
from mimo_engine.server.anthropic.convert import convert, own_names
from mimo_engine.server.anthropic.schemas import CountTokensRequest, MessagesRequest

PNG = {"type": "base64", "media_type": "image/png", "data": "AAAA"}


def text(words):
    return {"type": "text", "text": words}


def use(id_, name="f"):
    return {"type": "tool_use", "id": id_, "name": name, "input": {"x": 1}}


def result(id_, content="ok", **fields):
    return {"type": "tool_result", "tool_use_id": id_, "content": content, **fields}


def user(*content):
    return {"role": "user", "content": list(content)}


def assistant(*content):
    return {"role": "assistant", "content": list(content)}


def converted(*messages, **fields):
    body = {"model": "m", "messages": list(messages), **fields}
    return convert(CountTokensRequest.model_validate(body))


def chat_messages(*messages, **fields):
    return converted(*messages, **fields)[0].messages


def test_results_are_messages_of_their_own_before_what_the_user_says():
    found = chat_messages(
        user(text("q")),
        assistant({"type": "thinking", "thinking": "t", "signature": "s"}, use("a"), use("b")),
        user(result("a"), result("b", [text("1"), text("2")], is_error=True), text("go on")),
    )
    assert [message["role"] for message in found] == ["user", "assistant", "tool", "tool", "user"]
    assert found[1]["reasoning_content"] == "t"
    assert [call["id"] for call in found[1]["tool_calls"]] == ["a", "b"]
    assert [message["content"] for message in found[2:]] == ["ok", "Error: 1 2", "go on"]


def test_neighbours_of_one_role_are_one_turn():
    found = chat_messages(
        user(text("a"), text("b")), user(text("c")), assistant(text("d")), assistant(text("e"))
    )
    assert [message["content"] for message in found] == ["ab\nc", "d\ne"]


def test_the_system_prompt_has_a_line_a_block_and_no_billing_header():
    header = "x-anthropic-billing-header: cc_version=1; cch=5f2a1;"
    for system in ([text(header), text("A"), text("B")], f"{header}\nA\nB"):
        [message, _] = chat_messages(user(text("q")), system=system)
        assert message == {"role": "system", "content": "A\nB"}


def test_media_keep_their_place_and_errors_about_them_name_it():
    chat, places = converted(
        user(text("q")),
        assistant(use("a")),
        user(
            result("a", [text("see"), {"type": "image", "source": PNG}]),
            {"type": "image", "source": {"type": "url", "url": "http://x/y.png"}, "detail": "low"},
        ),
    )
    tool, last = chat.messages[-2:]
    assert tool["content"][1] == {"type": "image", "image": {"url": "data:image/png;base64,AAAA"}}
    assert last["content"][0]["detail"] == "low"
    with pytest.raises(RequestError, match=r"^messages\.2\.content\.0\.content\.1: bad"):
        with own_names(places):
            raise RequestError("messages[2].content[1]: bad")


def test_documents_and_search_results_are_text():
    source = {"type": "text", "media_type": "text/plain", "data": "D"}
    document = {"type": "document", "source": source, "title": "T"}
    found = {"type": "search_result", "source": "http://x", "title": "S", "content": [text("R")]}
    [message] = chat_messages(user(document, found))
    assert message["content"] == (
        "<document>\n<title>T</title>\nD\n</document>\n"
        "<search_result>\n<title>S</title>\n<source>http://x</source>\nR\n</search_result>\n"
    )


@pytest.mark.parametrize(
    ("choice", "expected"),
    [
        ({"type": "auto"}, "auto"),
        ({"type": "none"}, "none"),
        ({"type": "any"}, "required"),
        ({"type": "tool", "name": "f"}, {"type": "function", "function": {"name": "f"}}),
    ],
)
def test_choices_of_tools_are_those_of_chat(choice, expected):
    tools = [{"name": "f", "input_schema": {"type": "object"}}]
    for off in (None, False, True):
        fields = {"tool_choice": {**choice, "disable_parallel_tool_use": off}, "tools": tools}
        chat, _ = converted(user(text("q")), **fields)
        assert chat.tool_choice == expected
        assert chat.parallel_tool_calls is (False if off else None)


def test_sampling_fields_are_those_of_chat():
    fields = {"max_tokens": 7, "temperature": 0.5, "top_p": 0.9, "top_k": 3}
    body = {**fields, "model": "m", "messages": [user(text("q"))], "stop_sequences": ["x"]}
    chat, _ = convert(MessagesRequest.model_validate(body))
    assert {name: getattr(chat, name) for name in fields} == fields
    assert (chat.stop, chat.enable_thinking) == (["x"], False)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([user(result("a"))], r"messages\.0\.content\.0\.tool_use_id: 'a' is no tool_use"),
        ([assistant(use("a")), user(result("a"), result("a"))], r"1\.content\.1.* already"),
        ([assistant(use("a")), user(text("q"))], r"messages\.0\.content\.0: .* must be followed"),
        ([assistant(use("a"))], r"messages\.0\.content\.0: .* must be followed"),
        ([assistant(use("a"), use("a"))], r"messages\.0\.content\.1\.id: 'a' is the id of another"),
        ([assistant(use("a")), user(text("q"), result("a"))], "must be followed"),
        (
            [assistant(use("a"), use("b")), user(result("a"), text("q"), result("b"))],
            "must be followed",
        ),
        ([user(use("a"))], "a tool_use block cannot stand in a user message"),
        ([assistant({"type": "image", "source": PNG})], "image block cannot stand in a"),
        (
            [{"role": "system", "content": [{"type": "image", "source": PNG}]}],
            "cannot stand in a system message",
        ),
        (
            [assistant({"type": "thinking", "thinking": "", "signature": "thought:?"}), user()],
            r"messages\.0\.content\.0\.signature: ",
        ),
    ],
)
def test_what_cannot_stand_where_it_does_is_refused_by_its_place(messages, reason):
    with pytest.raises(RequestError, match=reason):
        converted(*messages)


def test_an_answer_that_has_begun_with_a_thought_to_come_is_refused():
    thinking = {"type": "enabled", "budget_tokens": 2048}
    with pytest.raises(RequestError, match="disable thinking"):
        converted(user(text("q")), assistant(text("a")), thinking=thinking)
    begun = assistant({"type": "thinking", "thinking": "t"}, text("a"))
    chat, _ = converted(user(text("q")), begun, thinking=thinking)
    assert chat.continue_final_message


VALUES = st.sampled_from(
    [None, True, 0, -1, 1.5, "", "a", "b", "text", "object", "any", "tool", [], {}, [{}], ["a"]]
)
BLOCKS = st.one_of(
    st.sampled_from(["", "hello", "\ud800", "x-anthropic-billing-header: y"]).map(text),
    st.sampled_from("ab").map(use),
    st.builds(result, st.sampled_from("ab"), st.sampled_from(["", [text("r")], None])),
    st.just({"type": "image", "source": PNG}),
    st.fixed_dictionaries(
        {
            "type": st.just("thinking"),
            "thinking": st.sampled_from(["", "t"]),
            "signature": st.sampled_from(["", "unsigned", "thought:dA==", "thought:\ud800"]),
        }
    ),
    st.dictionaries(st.sampled_from(["type", "text", "source", "id"]), VALUES, max_size=3),
)
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system"]),
            "content": st.one_of(st.text(max_size=3), st.lists(BLOCKS, max_size=3)),
        }
    ),
    min_size=1,
    max_size=4,
)
FIELDS = st.dictionaries(
    st.sampled_from(
        ["system", "tools", "tool_choice", "thinking", "output_config", "top_k", "stop_sequences"]
    ),
    st.one_of(VALUES, st.dictionaries(st.sampled_from(["type", "name", "format"]), VALUES)),
    max_size=2,
)


@given(MESSAGES, FIELDS)
def test_every_request_is_one_for_chat_or_is_refused(messages, fields):
    body = {"model": "m", "max_tokens": 5, "messages": messages, **fields}
    try:
        chat, _ = convert(MessagesRequest.model_validate(body))
    except (RequestError, ValidationError):
        return
    answered = [message["tool_call_id"] for message in chat.messages if message["role"] == "tool"]
    called = [call["id"] for message in chat.messages for call in message.get("tool_calls", ())]
    assert sorted(answered) == sorted(called)
