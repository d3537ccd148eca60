"""What the stream parser does, case by case.

Each failure that protocol.md records for other servers has its test here. Every case is pushed
whole, by single characters and in every two parts.
"""

import json

import pytest

from mimo_engine.chat.events import (
    Content,
    Reasoning,
    Span,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    merge_events,
)
from mimo_engine.chat.stream_parser import StreamParser, thinking_after
from mimo_engine.chat.tools import tool_schemas

PARAMETERS = {
    "type": "object",
    "properties": {
        "path": {"type": "string"},
        "content": {"type": "string"},
        "days": {"type": "integer"},
        "unit": {"type": ["integer", "null"]},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "metric": {"type": "boolean"},
        "tags": {"type": "array"},
    },
}
TOOLS = tool_schemas(
    [
        {"type": "function", "function": {"name": "get_weather", "parameters": PARAMETERS}},
        {"type": "function", "function": {"name": "now"}},
    ]
)
NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>"


class Result:
    def __init__(self, events, parser, spans):
        self.events = events
        self.reasoning = "".join(e.text for e in events if isinstance(e, Reasoning))
        self.content = "".join(e.text for e in events if isinstance(e, Content))
        names = [e.name for e in events if isinstance(e, ToolCallStart)]
        self.calls = [
            (
                name,
                "".join(
                    e.arguments for e in events if isinstance(e, ToolCallDelta) and e.index == index
                ),
            )
            for index, name in enumerate(names)
        ]
        self.num_complete_calls = parser.num_complete_calls
        self.has_incomplete_call = parser.has_incomplete_call
        self.spans = spans

    @property
    def arguments(self):
        """Of the only call."""
        ((_, arguments),) = self.calls
        return json.loads(arguments)


def push_all(pieces, options):
    spans = []
    parser = StreamParser(spans=spans, **options)
    events = []
    for piece in pieces:
        events += parser.push(piece)
    events += parser.finish()
    assert "".join(span.text for span in spans) == "".join(pieces)
    return Result(merge_events(events), parser, spans)


def parse(text, **options):
    options = {"thinking": "off", "tools": TOOLS} | options
    result = push_all([text], options)
    for pieces in (list(text), *([text[:cut], text[cut:]] for cut in range(1, len(text)))):
        assert push_all(pieces, options).events == result.events
    return result


def call(body, name="get_weather"):
    return f"<tool_call>\n<function={name}>\n{body}</function>\n</tool_call>"


def parameter(name, value):
    return f"<parameter={name}>{value}</parameter>\n"


@pytest.mark.parametrize(
    ("text", "reasoning", "content"),
    [
        ("<think>a</think>b", "a", "b"),
        ("b", "", "b"),
        ("</think>b", "", "b"),
        ("<think>cut", "cut", ""),
        ("<think></think>b", "", "b"),
        ("<think>a</thi", "a</thi", ""),
        ("<thi", "", "<thi"),
        ("  ", "", "  "),
        ("\n<think>\na\n</think>\n\nb\n", "\na\n", "\n\nb\n"),
        ("x<think>a", "", "x<think>a"),
        ("<think>a < b </ c </thin </think>d", "a < b </ c </thin ", "d"),
    ],
)
def test_reasoning_and_content_are_separated_and_not_trimmed(text, reasoning, content):
    for tools in (TOOLS, None):
        result = parse(text, thinking="maybe", tools=tools)
        assert (result.reasoning, result.content) == (reasoning, content)


def test_an_answer_without_a_thought_is_content_though_thinking_was_on():
    assert parse("Hello", thinking="maybe").content == "Hello"


def test_an_answer_after_an_empty_pair_in_the_prompt_is_content_with_tools_too():
    result = parse("Hello" + NOW, thinking=thinking_after("<|im_start|>assistant\n<think></think>"))
    assert (result.reasoning, result.content, result.calls) == ("", "Hello", [("now", "{}")])


def test_a_thought_after_a_tool_result_is_reasoning():
    prompt = (
        "<|im_start|>assistant\n<think>old</think>x<|im_end|><|im_start|>tool\n<tool_response>\n"
        "</think>\n</tool_response>\n<|im_end|><|im_start|>assistant\n"
    )
    result = parse("<think>new</think>y", thinking=thinking_after(prompt))
    assert (result.reasoning, result.content) == ("new", "y")


def test_one_stray_end_of_a_thought_is_dropped_before_content_and_kept_after_it():
    result = parse("<think>a</think></think>b</think>c", thinking="maybe")
    assert (result.reasoning, result.content) == ("a", "b</think>c")
    result = parse("<think>a</think></think></think>b", thinking="maybe")
    assert (result.reasoning, result.content) == ("a", "</think>b")


def test_a_call_in_an_open_thought_is_rescued():
    result = parse("<think>Now." + NOW + "</think>Done.", thinking="maybe")
    assert (result.reasoning, result.content, result.calls) == ("Now.", "Done.", [("now", "{}")])


def test_a_call_in_an_open_thought_is_left_there_on_demand():
    text = "<think>Now." + NOW + "</think>Done."
    result = parse(text, thinking="maybe", tool_call_in_thinking="leave")
    assert (result.reasoning, result.content, result.calls) == ("Now." + NOW, "Done.", [])


def test_a_thought_that_mentions_the_tag_of_a_call_goes_on():
    result = parse("<think>A <tool_call> tag\n<tool_call>", thinking="maybe")
    assert result.reasoning == "A <tool_call> tag\n"
    result = parse("<think><tool_call>\n</tool_call></think>x", thinking="maybe")
    assert (result.reasoning, result.content) == ("<tool_call>\n</tool_call>", "x")


def test_reasoning_stays_in_the_content_when_its_tags_mean_nothing():
    text = "<think>a</think>b</think>"
    result = parse(text + NOW, thinking="plain")
    assert (result.reasoning, result.content, result.calls) == ("", text, [("now", "{}")])
    assert parse(text, thinking="plain", tools=None).content == text


@pytest.mark.parametrize(
    ("prompt", "thinking"),
    [
        ("<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n", "maybe"),
        ("<|im_start|>user\n<think><|im_end|><|im_start|>assistant\n", "maybe"),
        ("<|im_start|>user\nHi<|im_end|><|im_start|>assistant\n<think></think>", "off"),
        ("<|im_start|>assistant\n<think>\n", "open"),
        ("<|im_start|>assistant\n<think>First, ", "open"),
        ("<|im_start|>assistant\n<think>a</think>The answer", "off"),
        ("<|im_start|>assistant\nThe answer", "off"),
    ],
)
def test_the_rendered_prompt_says_how_the_output_begins(prompt, thinking):
    assert thinking_after(prompt) == thinking


def test_both_forms_of_a_call_are_read():
    body = parameter("path", "a b") + parameter("days", "3")
    newlines = parse(call(body))
    none = parse(call(body).replace("\n", ""))
    assert newlines.events == none.events
    assert newlines.calls == [("get_weather", '{"path": "a b", "days": 3}')]
    assert newlines.num_complete_calls == 1
    assert not newlines.has_incomplete_call


def test_a_call_without_arguments_has_an_empty_object():
    assert parse(NOW).calls == [("now", "{}")]


def test_the_events_of_a_call_come_as_it_is_generated():
    parser = StreamParser(thinking="off", tools=TOOLS)
    assert parser.push("<tool_call>\n<function=get_weather") == []
    assert parser.push(">\n") == [ToolCallStart(0, "get_weather")]
    assert parser.push("<parameter=path>") == [ToolCallDelta(0, '{"path": "')]
    assert parser.push('a"b</pa') == [ToolCallDelta(0, 'a\\"b')]
    assert parser.push("n\n") == [ToolCallDelta(0, "</pan")]
    assert parser.push("</parameter>\n<parameter=days>1") == [
        ToolCallDelta(0, '\\n", "days": '),
    ]
    assert parser.push("2") == []
    assert parser.push("</parameter>") == [ToolCallDelta(0, "12")]
    assert parser.has_incomplete_call
    assert parser.push("\n</function>") == [ToolCallDelta(0, "}"), ToolCallEnd(0)]
    assert not parser.has_incomplete_call
    assert parser.push("\n</tool_call>") == []
    assert parser.finish() == []


def test_a_string_that_may_be_null_streams_once_it_cannot_be():
    parser = StreamParser(thinking="off", tools=TOOLS)
    parser.push("<tool_call><function=get_weather><parameter=note>")
    assert parser.push("nul") == []
    assert parser.push("lify ") == [ToolCallDelta(0, '"nullify ')]
    assert parser.push("null") == [ToolCallDelta(0, "null")]


def test_two_calls_in_one_push_are_both_sent():
    result = parse(NOW + call(parameter("days", "1")))
    assert result.calls == [("now", "{}"), ("get_weather", '{"days": 1}')]


def test_two_functions_in_one_block_are_both_sent():
    result = parse("<tool_call><function=now></function>\n<function=now></function></tool_call>")
    assert result.calls == [("now", "{}"), ("now", "{}")]
    assert result.content == ""


def test_a_tag_split_between_pushes_does_not_lose_the_call():
    result = push_all(
        ["Hi <tool", "_call>\n<func", "tion=now>\n</function>\n</tool_", "call>"],
        {"thinking": "off", "tools": TOOLS},
    )
    assert (result.content, result.calls) == ("Hi ", [("now", "{}")])


def test_text_before_between_and_after_calls_is_kept():
    result = parse("Before. " + NOW + " Between. " + NOW + "\nAfter.\n")
    assert result.content == "Before.  Between. \nAfter.\n"
    assert [
        type(event).__name__ for event in result.events if not isinstance(event, ToolCallDelta)
    ] == [
        "Content",
        "ToolCallStart",
        "ToolCallEnd",
        "Content",
        "ToolCallStart",
        "ToolCallEnd",
        "Content",
    ]


def test_white_space_between_calls_is_dropped_by_name_and_other_white_space_kept():
    result = parse("\n" + NOW + "\n\n" + NOW + "\n")
    assert result.content == "\n\n"
    assert Span("whitespace", "\n\n") in result.spans
    assert {span.kind for span in result.spans} == {"content", "tag", "whitespace"}


def test_without_tools_a_call_is_content():
    for tools in (None, {}):
        result = parse("Hi " + NOW, tools=tools)
        assert (result.content, result.calls) == ("Hi " + NOW, [])


def test_a_function_that_the_request_does_not_know_is_a_call():
    result = parse(call(parameter("x", "007"), name="other"))
    assert result.calls == [("other", '{"x": "007"}')]
    assert result.content == ""


def test_a_block_without_a_function_is_content():
    for text in ('<tool_call>{"name": "now"}</tool_call>', "<tool_call>\n</tool_call>x"):
        result = parse(text)
        assert (result.content, result.calls) == (text, [])


def test_a_function_without_a_block_is_a_call_at_the_start_of_a_line_only():
    result = parse("See:\n<function=now>\n</function>\n<function=now></function>.")
    assert (result.content, result.calls) == ("See:\n.", [("now", "{}"), ("now", "{}")])
    assert parse("See <function=now></function>").content == "See <function=now></function>"
    result = parse(NOW + "</think><function=now></function>")
    assert (result.content, len(result.calls)) == ("", 2)


def test_a_call_cut_in_the_middle_is_kept_as_far_as_it_got():
    result = parse(
        "<tool_call>\n<function=get_weather>\n<parameter=days>3</parameter>\n"
        "<parameter=content>line 1\nline <"
    )
    assert result.calls == [("get_weather", '{"days": 3, "content": "line 1\\nline <')]
    assert result.has_incomplete_call
    assert result.num_complete_calls == 0


def test_a_typed_value_that_was_cut_is_in_no_event_but_named():
    result = parse("<tool_call>\n<function=get_weather>\n<parameter=tags>[1, ")
    assert result.calls == [("get_weather", '{"tags": ')]
    assert result.spans[-1] == Span("cut_value", "[1, ")


def test_a_call_cut_before_its_name_is_incomplete_and_no_content():
    result = parse("Hi <tool_call>\n<function=get_w")
    assert (result.content, result.calls, result.has_incomplete_call) == ("Hi ", [], True)


def test_a_complete_call_whose_block_is_cut_is_complete():
    result = parse("<tool_call>\n<function=now>\n</function>\n</tool_")
    assert (result.content, result.calls) == ("", [("now", "{}")])
    assert (result.num_complete_calls, result.has_incomplete_call) == (1, False)


def test_an_unclosed_second_call_does_not_take_the_first_with_it():
    result = parse(NOW + "\n<tool_call>\n<function=get_weather>\n")
    assert result.calls == [("now", "{}"), ("get_weather", "")]
    assert (result.num_complete_calls, result.has_incomplete_call) == (1, True)


def test_speculative_bursts_keep_the_arguments():
    text = call(parameter("path", "src/a.py") + parameter("content", "x = 1\n"))
    for size in range(2, 40):
        pieces = [text[start : start + size] for start in range(0, len(text), size)]
        result = push_all(pieces, {"thinking": "off", "tools": TOOLS})
        assert result.arguments == {"path": "src/a.py", "content": "x = 1\n"}


@pytest.mark.parametrize(
    "value",
    [
        "",
        "\n",
        "  indented\n\n",
        "\n\r\n\ttext",
        "a &lt;b&gt; &amp;amp; &#39;",
        "null",
        "None",
        "007",
        "true",
        '{"a": 1}',
        "say \"hi\" \\ 'there'\x00\x1f\u2028",
        "naïve 😀 👩\u200d👩 e\u0301",
        "if a < b and c </ d: <<< </param </parameter",
        "<div></div><parameter=x> <tool_call> <function=now> </function> <think></think>",
        "x = '</tool_call>'\ny = '</function>'\n",
        "<function>\n  <name>f</name>\n</function>\n<other/>",
        "<parameter=" + "n" * 300,
    ],
)
def test_a_string_is_exact(value):
    assert parse(call(parameter("content", value))).arguments == {"content": value}
    assert parse(call(parameter("unknown", value))).arguments == {"unknown": value}


def test_a_list_of_types_is_understood():
    assert parse(call(parameter("unit", "None"))).arguments == {"unit": None}
    assert parse(call(parameter("unit", "3"))).arguments == {"unit": 3}


def test_a_string_that_may_be_null_is_null_only_when_exact():
    for value, expected in [("null", None), ("None", None), ("null\n", "null\n"), ("NULL", "NULL")]:
        assert parse(call(parameter("note", value))).arguments == {"note": expected}


def test_pythons_spellings_are_read_where_the_schema_allows_them():
    body = parameter("metric", "True") + parameter("tags", "['a', None, False]")
    assert parse(call(body)).calls[0][1] == '{"metric": true, "tags": ["a", null, false]}'


def test_a_typed_value_that_does_not_fit_stays_the_text_it_was():
    body = parameter("days", " 3.5 ") + parameter("metric", "1") + parameter("tags", "[")
    assert parse(call(body)).arguments == {"days": " 3.5 ", "metric": "1", "tags": "["}


@pytest.mark.parametrize(
    "end",
    [
        "\n</function>\n</tool_call>",
        "\n</tool_call>",
        "</function></tool_call>",
        "</function>\n</tool_call>",
        "</tool_call>",
    ],
)
def test_a_forgotten_end_of_a_value_is_recovered_at_the_end_of_the_call(end):
    text = "<tool_call>\n<function=get_weather>\n<parameter=path>a b" + end
    for after, num_calls in (("", 1), (NOW, 2), ("\n" + NOW, 2)):
        result = parse(text + after)
        assert result.calls[0] == ("get_weather", '{"path": "a b"}')
        assert result.num_complete_calls == len(result.calls) == num_calls
        assert result.content == ""


def test_a_forgotten_end_of_a_value_is_recovered_at_the_end_of_the_output():
    result = parse("<tool_call>\n<function=now>\n<parameter=a>x\n</function>\n")
    assert (result.calls, result.num_complete_calls) == ([("now", '{"a": "x"}')], 1)


def test_a_forgotten_end_of_a_value_is_recovered_at_the_next_parameter_that_starts_a_line():
    result = parse(call("<parameter=days>3\n" + parameter("path", "x<parameter=days>y")))
    assert result.arguments == {"days": 3, "path": "x<parameter=days>y"}


def test_text_after_a_recovered_call_is_content():
    for end in ("\n</tool_call>", "\n</function></tool_call>", "</function>\n</tool_call>"):
        result = parse("<tool_call><function=now><parameter=a>x" + end + "\nDone.")
        assert (result.calls, result.content) == ([("now", '{"a": "x"}')], "\nDone.")


def test_a_parameter_given_twice_counts_once_and_the_other_is_content():
    result = parse(call(parameter("days", "1") + parameter("days", "2") + parameter("path", "p")))
    assert result.calls == [("get_weather", '{"days": 1, "path": "p"}')]
    assert result.content == "<parameter=days>2</parameter>"


def test_text_between_parameters_is_content():
    result = parse(call('{"days": 1}\n' + parameter("days", "2") + "x</parameter>"))
    assert result.arguments == {"days": 2}
    assert result.content == '\n{"days": 1}\n\nx</parameter>'


def test_a_forgotten_end_of_a_function_does_not_merge_two_calls():
    result = parse("<tool_call><function=now><parameter=a>1</parameter>" + NOW)
    assert result.calls == [("now", '{"a": "1"}'), ("now", "{}")]
    assert result.num_complete_calls == 2


_PARAMETER = "<tool_call><function=f><parameter=a>"


@pytest.mark.parametrize(
    ("prefix", "piece", "count"),
    [
        ("", "x", 200_000),
        ("", "<function=", 20_000),
        ("<tool_call>", " ", 200_000),
        (NOW, "\n", 200_000),
        (_PARAMETER, "<", 200_000),
        (_PARAMETER, "\n", 200_000),
        (_PARAMETER + "</function>", " ", 200_000),
        (_PARAMETER, "</function> ", 15_000),
        (_PARAMETER, "\n</function> x", 15_000),
        ("<tool_call><function=get_weather><parameter=tags>", "[", 200_000),
        ("<tool_call><function=get_weather><parameter=days>", "9", 200_000),
        ("<tool_call><function=get_weather>", "<parameter=days>1</parameter>", 5_000),
    ],
)
def test_no_text_makes_the_parser_hold_or_read_again_more_than_a_tag(prefix, piece, count):
    text = prefix + piece * count
    parser = StreamParser(thinking="maybe", tools=TOOLS)
    scanned = 0
    for character in text:
        parser.push(character)
        scanned += len(parser._reader._buffer)
    assert scanned < 300 * len(text)
    parser.push("</parameter></function></tool_call>")
    parser.finish()
    push_all([text], {"thinking": "maybe", "tools": TOOLS})
