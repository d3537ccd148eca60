"""Blocks of Anthropic's API hold what a message of chat does, in whatever order the model wrote."""

import json

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.chat.stream_parser import StreamParser
from mimo_engine.chat.tools import tool_schemas
from mimo_engine.server.answer import Answer
from mimo_engine.server.anthropic.stream import BlockStream, blocks_of

TOOL = {"type": "object", "properties": {"place": {"type": "string"}}}
TOOLS = tool_schemas([{"type": "function", "function": {"name": "look", "parameters": TOOL}}])
OPEN, CLOSE = "<tool_call>\n<function=look>\n", "</function>\n</tool_call>"
ROME = "<parameter=place>Rome</parameter>\n"
PIECES = ["<think>", "</think>", "text", "\n", OPEN, ROME, CLOSE, f"{OPEN}{ROME}{CLOSE}"]
DELTAS = {"text": "text_delta", "thinking": "thinking_delta", "tool_use": "input_json_delta"}
KEYS = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "partial_json"}


def run(pieces):
    """The message of chat, and the events that its deltas make."""
    answer = Answer(StreamParser(thinking="maybe", tools=TOOLS))
    stream = BlockStream(shows_thinking=True)
    events = []
    for i, piece in enumerate(pieces):
        for delta in answer.take([piece], is_last=i == len(pieces) - 1):
            events += stream.events(delta)
    return answer.message(), [*events, *stream.end()]


def added_up(events):
    """Type and text of each block, its events being in their places."""
    blocks, is_open = [], False
    for event in json.loads(msgspec.json.encode(events)):
        kind = event["type"].removeprefix("content_block_")
        if kind == "start":
            assert (is_open, event["index"]) == (False, len(blocks))
            blocks.append([event["content_block"]["type"], ""])
        else:
            assert (is_open, event["index"]) == (True, len(blocks) - 1)
        is_open = kind != "stop"
        delta = event.get("delta", {})
        if kind == "delta" and delta["type"] != "signature_delta":
            assert delta["type"] == DELTAS[blocks[-1][0]]
            blocks[-1][1] += delta[KEYS[delta["type"]]]
    assert not is_open
    return blocks


@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=10))
def test_blocks_add_up_to_the_message_of_chat(pieces):
    message, events = run(pieces)
    blocks = added_up(events)

    def texts(kind):
        return [text for name, text in blocks if name == kind]

    assert "".join(texts("text")) == (message.content or "")
    assert "".join(texts("thinking")) == (message.reasoning_content or "")
    calls = message.tool_calls or ()
    assert texts("tool_use") == [call.function.arguments for call in calls]


def test_text_within_a_call_comes_behind_it():
    message, events = run([OPEN, "within", ROME, "it", CLOSE, "after"])
    assert added_up(events) == [["tool_use", '{"place": "Rome"}'], ["text", message.content]]
    call, said = blocks_of(events)
    assert json.loads(bytes(call.input)) == {"place": "Rome"}
    assert said.text == message.content == "\nwithin\nitafter"
