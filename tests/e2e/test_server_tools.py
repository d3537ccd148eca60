"""Tool calls over HTTP, as the official client sees them, on an engine that follows a script."""

import asyncio
import json
import re
import threading
from random import Random
from typing import ClassVar

import openai
import pytest
from fake_server import MODEL, FakeServer, scripted

from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.server.grammars import GrammarCheck

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a place.",
        "parameters": {
            "type": "object",
            "properties": {
                "location": {"type": "string"},
                "days": {"type": "integer"},
                "metric": {"type": "boolean"},
                "tags": {"type": "array", "items": {"type": "string"}},
            },
            "required": ["location"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
TOOLS = [WEATHER, NOW]
PARIS = """<tool_call>
<function=get_weather>
<parameter=location>Paris "\\ é🙂
007</parameter>
<parameter=days>3</parameter>
<parameter=metric>True</parameter>
<parameter=tags>["a", "b"]</parameter>
</function>
</tool_call>"""
PARIS_ARGUMENTS = {
    "location": 'Paris "\\ é🙂\n007',
    "days": 3,
    "metric": True,
    "tags": ["a", "b"],
}
ROME = (
    "<tool_call><function=get_weather><parameter=location>Rome</parameter></function></tool_call>"
)
CLOCK = "<tool_call>\n<function=now>\n</function>\n</tool_call>"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    scheduler = SchedulerConfig(max_model_len=16384)
    with FakeServer(tmp_path_factory.mktemp("model"), scheduler=scheduler) as server:
        yield server


@pytest.fixture(scope="module")
def client(server):
    with server.openai() as client:
        yield client


def says(text):
    """A conversation that the engine answers with `text`."""
    return [{"role": "user", "content": "What is the weather?" + scripted(text)}]


def chat(client, messages, **kwargs):
    return client.chat.completions.create(
        model=MODEL, messages=messages, **{"tools": TOOLS, **kwargs}
    )


def streamed(client, messages, **kwargs):
    """The message that the deltas of a stream add up to, its finish reason, and its chunks."""
    message = {"content": "", "reasoning_content": None, "tool_calls": []}
    finish_reason = None
    chunks = list(chat(client, messages, stream=True, **kwargs))
    assert chunks[0].choices[0].delta.role == "assistant"
    for chunk in chunks:
        [choice] = chunk.choices
        assert finish_reason is None
        finish_reason, delta = choice.finish_reason, choice.delta
        message["content"] += delta.content or ""
        if delta.reasoning_content:
            message["reasoning_content"] = (
                message["reasoning_content"] or ""
            ) + delta.reasoning_content
        for piece in delta.tool_calls or ():
            assert piece.type == "function"
            if piece.index == len(message["tool_calls"]):
                assert re.fullmatch("call_[0-9a-f]{24}", piece.id)
                assert piece.function.arguments == ""
                message["tool_calls"].append([piece.function.name, ""])
            else:
                assert piece.index == len(message["tool_calls"]) - 1
                assert (piece.id, piece.function.name) == (None, None)
                message["tool_calls"][-1][1] += piece.function.arguments
    return message, finish_reason, chunks


def as_dict(choice):
    """A whole choice in the form of `streamed`."""
    message = choice.message
    calls = [[call.function.name, call.function.arguments] for call in message.tool_calls or ()]
    return {
        "content": message.content or "",
        "reasoning_content": message.reasoning_content,
        "tool_calls": calls,
    }


@pytest.mark.parametrize("stream", [False, True])
def test_two_turns_of_a_conversation_with_tools(server, client, stream):
    messages = says(f"<think>I need both.</think>Let me look.{PARIS}{ROME}")
    if stream:
        with client.chat.completions.stream(model=MODEL, messages=messages, tools=TOOLS) as events:
            choice = events.get_final_completion().choices[0]
    else:
        choice = chat(client, messages).choices[0]
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me look."
    assert choice.message.reasoning_content == "I need both."
    paris, rome = choice.message.tool_calls
    assert (paris.type, paris.function.name) == ("function", "get_weather")
    assert json.loads(paris.function.arguments) == PARIS_ARGUMENTS
    assert json.loads(rome.function.arguments) == {"location": "Rome"}
    assert paris.id != rome.id
    # The results, the other way round.
    messages = [
        *messages,
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": rome.id, "content": "25"},
        {
            "role": "tool",
            "tool_call_id": paris.id,
            "content": "21" + scripted("Paris 21, Rome 25."),
        },
    ]
    body = {"messages": messages, "tools": TOOLS}
    tokens = server.post("/tokenize", body).json()["tokens"]
    text = server.tokenizer.decode(tokens, skip_special_tokens=False)
    assert text.index("<tool_response>\n21") < text.index("<tool_response>\n25")
    assert "<think>I need both.</think>Let me look.<tool_call>" in text
    assert "<parameter=metric>True</parameter>" in text
    answer = chat(client, messages).choices[0]
    assert (answer.message.content, answer.finish_reason) == ("Paris 21, Rome 25.", "stop")
    assert answer.message.tool_calls is None


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (PARIS, ["get_weather"]),
        (f"<think>hm</think>\n\n{CLOCK}{PARIS} and after", ["now", "get_weather"]),
        (f"{ROME}between{ROME}", ["get_weather", "get_weather"]),
        ("<think>a < b</thin</think>x </tool_call> <tool_cal <function= y", []),
        (f"<think>quick {ROME}", ["get_weather"]),
        ("<tool_call>\n<function=unknown>\n<parameter=a>1</parameter>\n</function>", ["unknown"]),
    ],
)
def test_the_message_does_not_depend_on_the_tokens_of_a_step(client, text, names):
    choice = chat(client, says(text)).choices[0]
    assert [call.function.name for call in choice.message.tool_calls or ()] == names
    for step in range(1, 5):
        message, finish_reason, _ = streamed(client, says(text), seed=step)
        assert message == as_dict(choice)
        assert finish_reason == choice.finish_reason == ("tool_calls" if names else "stop")


def test_text_around_calls_is_kept(client):
    message = chat(client, says(f"before{PARIS}between{CLOCK}after")).choices[0].message
    assert message.content == "beforebetweenafter"
    assert len(message.tool_calls) == 2


def test_a_message_of_calls_alone_has_no_content(client):
    message = chat(client, says(CLOCK)).choices[0].message
    assert message.content is None
    assert message.tool_calls[0].function.arguments == "{}"


def test_arguments_arrive_while_they_are_written(client):
    _, _, chunks = streamed(client, says(ROME.replace("Rome", "one two three four five six")))
    pieces = [
        piece.function.arguments
        for chunk in chunks
        for piece in chunk.choices[0].delta.tool_calls or ()
    ]
    assert pieces[0] == ""
    assert len(pieces) > 5


def test_a_call_that_is_cut_is_reported_as_far_as_it_got(server, client):
    num_tokens = len(server.tokenizer.encode(PARIS.partition("3</parameter>")[0]))
    kwargs = {"max_tokens": num_tokens, "seed": 2}
    choice = chat(client, says(PARIS), **kwargs).choices[0]
    assert choice.finish_reason == "length"
    [call] = choice.message.tool_calls
    location = json.dumps({"location": PARIS_ARGUMENTS["location"]}, ensure_ascii=False)
    assert call.function.arguments.startswith(location[:-1])
    with pytest.raises(ValueError):
        json.loads(call.function.arguments)
    message, finish_reason, _ = streamed(client, says(PARIS), **kwargs)
    assert (message, finish_reason) == (as_dict(choice), "length")


def test_an_output_that_ends_within_a_call_has_no_finish_reason_of_calls(client):
    choice = chat(client, says(CLOCK + ROME.partition("</function>")[0])).choices[0]
    assert len(choice.message.tool_calls) == 2
    assert choice.finish_reason == "stop"
    choice = chat(client, says(ROME), stop=["Rome"]).choices[0]
    assert (choice.finish_reason, choice.matched_stop) == ("stop", "Rome")


def test_every_choice_has_calls_and_ids_of_its_own(client):
    result = chat(client, says(PARIS), n=3, seed=1)
    ids = {choice.message.tool_calls[0].id for choice in result.choices}
    assert len(ids) == 3
    assert all(as_dict(choice) == as_dict(result.choices[0]) for choice in result.choices)
    indices = set()
    for chunk in chat(client, says(PARIS), n=3, seed=1, stream=True):
        [choice] = chunk.choices
        indices |= {(choice.index, call.index) for call in choice.delta.tool_calls or ()}
    assert indices == {(0, 0), (1, 0), (2, 0)}


@pytest.mark.parametrize("stream", [False, True])
def test_without_parallel_calls_the_answer_ends_with_its_first(server, client, stream):
    messages, kwargs = says(f"a{CLOCK}b{ROME}"), {"parallel_tool_calls": False}
    before = server.metric('mimo_engine_requests_total{finish_reason="stop"}') or 0
    if stream:
        message, finish_reason, _ = streamed(client, messages, **kwargs)
    else:
        choice = chat(client, messages, **kwargs).choices[0]
        message, finish_reason = as_dict(choice), choice.finish_reason
    assert finish_reason == "tool_calls"
    assert (message["content"], message["tool_calls"]) == ("a", [["now", "{}"]])
    assert server.metric('mimo_engine_requests_total{finish_reason="stop"}') == before + 1


def rendered(server, **fields):
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **fields}
    response = server.post("/tokenize", body)
    assert response.status_code == 200, response.text
    return server.tokenizer.decode(response.json()["tokens"], skip_special_tokens=False)


def test_the_choice_of_a_tool_decides_which_are_shown(server):
    named = {"type": "function", "function": {"name": "now"}}
    for choice, names in (
        (None, ["get_weather", "now"]),
        ("auto", ["get_weather", "now"]),
        ("required", ["get_weather", "now"]),
        (named, ["now"]),
        ("none", []),
    ):
        text = rendered(server, tool_choice=choice)
        assert re.findall("<name>(get_weather|now)</name>", text) == names
        assert ("# Tools" in text) == bool(names)


def test_with_choice_none_or_without_tools_a_call_is_text(client):
    for kwargs in ({"tool_choice": "none"}, {"tools": []}):
        message = chat(client, says(PARIS), **kwargs).choices[0].message
        assert message.content == PARIS
        assert message.tool_calls is None


def test_a_null_description_is_not_shown_as_a_word(server):
    tool = {"type": "function", "function": {"name": "f", "description": None, "strict": None}}
    assert "None" not in rendered(server, tools=[tool])


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"tools": [], "tool_choice": "required"}, "tools", "Tools cannot be empty if tool choice"),
        (
            {"tools": None, "tool_choice": {"type": "function", "function": {"name": "now"}}},
            "tools",
            "Tools cannot be empty if tool choice is set to a specific tool.",
        ),
        (
            {"tool_choice": {"type": "function", "function": {"name": "never"}}},
            "tool_choice",
            "Tool 'never' not found in tools list.",
        ),
        ({"tool_choice": "any"}, "tool_choice", "none, auto, required"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice", "none, auto, required"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "now", "strict": True}}},
            "tool_choice",
            "none, auto, required",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0]", "not a function tool"),
        ({"tools": [{"type": "function", "function": "f"}]}, "tools[0]", "object with a name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0]", "white space"),
        ({"tools": [NOW, NOW]}, "tools[1]", "already the name"),
        ({"tools": "now"}, "tools", "list"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 3}}}]},
            "tools[0]",
            "Tool 0 function has invalid 'parameters' schema",
        ),
        (
            {"tool_choice": "required", "response_format": {"type": "json_object"}},
            "tool_choice",
            "excludes response_format",
        ),
        ({"functions": [{"name": "f"}]}, "functions", "use tools in place of functions"),
        ({"tools": TOOLS, "messages": [{"role": "tool", "tool_call_id": "x"}]}, "messages", "'x'"),
    ],
)
def test_what_cannot_be_called_is_a_400_that_says_why(server, fields, param, message):
    body = {"messages": [{"role": "user", "content": "x"}], "tools": TOOLS, **fields}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert param in error["param"]
    assert message in error["message"]


def test_history_whose_arguments_are_no_object_is_refused(client):
    call = {"id": "a", "type": "function", "function": {"name": "now", "arguments": "[1]"}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "tool_calls": [call]}]
    with pytest.raises(openai.BadRequestError, match="must be a JSON object"):
        chat(client, messages)


class Watched(dict):
    """A tool that knows on which threads it is read."""

    threads: ClassVar[set[str]] = set()

    def __getitem__(self, key):
        self.threads.add(threading.current_thread().name)
        return super().__getitem__(key)


def test_grammars_of_tools_are_made_on_threads_of_their_own(server):
    spec = asyncio.run(GrammarCheck(server.tokenizer).of_tools([Watched(NOW)], parallel=True))
    assert "<function=now>" in spec.text
    assert len(Watched.threads) == 1
    assert all(name.startswith("grammar-check") for name in Watched.threads)


FIELDS = (
    *("tools", "tool_choice", "parallel_tool_calls", "response_format", "structured_outputs"),
    *("regex", "ebnf", "thinking_token_budget", "enable_thinking", "reasoning", "thinking"),
)
KEYWORDS = (
    *("required", "properties", "type", "enum", "anyOf", "allOf", "$ref", "$defs", "items"),
    *("minProperties", "additionalProperties", "pattern", "const", "description"),
)
MESSAGE_FIELDS = ("role", "content", "tool_calls", "tool_call_id", "reasoning_content", "name")
VALUES = [
    *(
        None,
        True,
        0,
        -1,
        1.5,
        2**70,
        "",
        "a",
        "required",
        "object",
        "tool",
        "assistant",
        "#/$defs/a",
    ),
    *([], {}, [[]], [{}], ["a"], [1], ["string", "null"], {"a": 1}, {"a": None}, {"json": None}),
    *(
        {"a": {"type": "string"}},
        {"a": {"enum": [None, "x", 3]}},
        {"a": {"$ref": "#/properties/a"}},
    ),
    *({"a": {"type": "array", "items": 3}}, {"a": {"anyOf": [{"type": "integer"}, True]}}),
    *([{"type": "text", "text": "x"}], [{"id": {"x": 1}, "function": {"name": "f"}}]),
    *({"type": "json_schema"}, {"type": "function", "function": {"name": "now"}}, TOOLS, "\ud800"),
]


def odd_request(random):
    def some(names):
        return {name: random.choice(VALUES) for name in random.sample(names, random.randint(1, 3))}

    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 2}
    match random.randrange(3):
        case 0:
            return body | some(FIELDS)
        case 1:
            roles = [random.choice(["user", "assistant", "tool"]) for _ in range(3)]
            return body | {"messages": [{"role": role, **some(MESSAGE_FIELDS)} for role in roles]}
    function = {"name": "f", "parameters": {"type": "object", **some(KEYWORDS)}}
    tools = [{"type": "function", "function": function}]
    return body | {"tools": tools, "tool_choice": random.choice(["auto", "required"])}


def test_odd_values_are_served_or_refused_and_break_nothing(server):
    random = Random(7)
    statuses = set()
    for _ in range(150):
        body = odd_request(random)
        response = server.post("/v1/chat/completions", body)
        statuses.add(response.status_code)
        assert response.status_code in (200, 400), body
    assert statuses == {200, 400}
