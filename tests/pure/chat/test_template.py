"""Rendering: the family's template against the worked examples of the format, E1 to E10."""

import pytest

from mimo_engine.chat.template import ChatTemplate, family_template, normalise_messages
from mimo_engine.errors import CheckpointError, RequestError

SYSTEM = "<|im_start|>system\nYou are MiMo, a helpful AI assistant engineered by Xiaomi.<|im_end|>"
HELLO = {"role": "user", "content": "Hello"}
OPEN = "<|im_start|>assistant\n"

TOOLS_TEXT = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You have access to the following functions:\n\n<tools>{tools}\n</tools>\n\n"
    "For each function call, output the function name and arguments in the following format:\n"
    "<tool_call>\n<function=example_function_name>\n"
    "<parameter=example_parameter_1>value_1</parameter>\n"
    "<parameter=example_parameter_2>This is the value for the second parameter\n"
    "that can span\nmultiple lines</parameter>\n</function>\n</tool_call>\n\n<IMPORTANT>\n"
    "- Function calls MUST follow the specified format: an inner <function=...></function> block "
    "must be nested within <tool_call></tool_call> XML tags\n"
    "- DO NOT use function calls inside <think></think> tags.\n"
    "- The value enclosed between parameter tags is preserved exactly as-is, including newlines "
    "and spaces.\n</IMPORTANT>"
)

TWO_CALLS = [
    {"role": "user", "content": "Weather in Paris and Rome?"},
    {
        "role": "assistant",
        "reasoning_content": "I need two calls.",
        "content": "Checking.",
        "tool_calls": [
            {
                "id": "a",
                "type": "function",
                "function": {
                    "name": "get_weather",
                    "arguments": '{"location":"Paris","days":3,"metric":true,"note":null,'
                    '"tags":["a",1],"ratio":0.5}',
                },
            },
            {
                "id": "b",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"location":"Rome"}'},
            },
        ],
    },
    {"role": "tool", "tool_call_id": "a", "content": '{"temp": 21}'},
    {"role": "tool", "tool_call_id": "b", "content": '{"temp": 25}'},
]
CALLS_TEXT = (
    "<tool_call>\n<function=get_weather>\n<parameter=location>Paris</parameter>\n"
    "<parameter=days>3</parameter>\n<parameter=metric>True</parameter>\n"
    '<parameter=note>None</parameter>\n<parameter=tags>["a", 1]</parameter>\n'
    "<parameter=ratio>0.5</parameter>\n</function>\n</tool_call>"
    "<tool_call>\n<function=get_weather>\n<parameter=location>Rome</parameter>\n"
    "</function>\n</tool_call><|im_end|>"
)
RESULTS_TEXT = (
    '<|im_start|>tool\n<tool_response>\n{"temp": 21}\n</tool_response>\n'
    '<tool_response>\n{"temp": 25}\n</tool_response>\n<|im_end|>'
)
ASK_TEXT = "<|im_start|>user\nWeather in Paris and Rome?<|im_end|>"


@pytest.fixture(scope="module")
def template():
    return ChatTemplate(family_template())


@pytest.fixture(scope="module")
def render(template):
    def render(messages, tools=None, **template_kwargs):
        return template.render(
            normalise_messages(messages), tools=tools, template_kwargs=template_kwargs
        )

    return render


def test_e1_one_user_turn_with_thinking(render):
    assert render([HELLO]) == SYSTEM + "<|im_start|>user\nHello<|im_end|>" + OPEN


def test_e2_thinking_off_closes_an_empty_thought(render):
    text = render([HELLO], enable_thinking=False)
    assert text == SYSTEM + "<|im_start|>user\nHello<|im_end|>" + OPEN + "<think></think>"


def test_e3_a_system_message_replaces_the_default(render):
    text = render([{"role": "system", "content": "Be brief."}, HELLO])
    assert text == (
        "<|im_start|>system\nBe brief.<|im_end|><|im_start|>user\nHello<|im_end|>" + OPEN
    )


def test_e4_calls_and_results_in_history(render):
    assert render(TWO_CALLS) == (
        SYSTEM
        + ASK_TEXT
        + "<|im_start|>assistant\n<think>I need two calls.</think>Checking."
        + CALLS_TEXT
        + RESULTS_TEXT
        + OPEN
    )


def test_e5_all_reasoning_is_kept_unless_told_otherwise(render):
    messages = [
        *TWO_CALLS,
        {"role": "assistant", "content": "Paris 21, Rome 25."},
        {"role": "user", "content": "Thanks"},
    ]
    end = (
        RESULTS_TEXT
        + "<|im_start|>assistant\n<think></think>Paris 21, Rome 25.<|im_end|>"
        + "<|im_start|>user\nThanks<|im_end|>"
        + OPEN
    )
    first = "<|im_start|>assistant\n<think>I need two calls.</think>Checking."
    assert render(messages) == SYSTEM + ASK_TEXT + first + CALLS_TEXT + end
    blank = "<|im_start|>assistant\n<think></think>Checking."
    text = render(messages, keep_all_reasoning=False)
    assert text == SYSTEM + ASK_TEXT + blank + CALLS_TEXT + end


def test_reasoning_after_the_last_user_turn_is_kept_in_any_case(render):
    text = render(TWO_CALLS, keep_all_reasoning=False)
    assert "<think>I need two calls.</think>Checking." in text


@pytest.mark.parametrize(
    ("content", "rendered"),
    [
        ("<think>plan</think>Sure.", "<think>plan</think>Sure."),
        ("Hey", "<think></think>Hey"),
        ("x<think>a<think>b</think>c</think>d", "<think>b</think>d"),
        ("a</think>  b ", "<think>a</think>  b "),
    ],
)
def test_e6_inline_reasoning(render, content, rendered):
    text = render([HELLO, {"role": "assistant", "content": content}])
    assert text.endswith(f"<|im_start|>assistant\n{rendered}<|im_end|>" + OPEN)


def test_reasoning_content_takes_precedence_over_inline_reasoning(render):
    turn = {"role": "assistant", "reasoning_content": "", "content": "a</think>b"}
    assert "<|im_start|>assistant\n<think></think>a</think>b<|im_end|>" in render([HELLO, turn])


def test_e7_a_call_without_arguments(render):
    call = {"id": "1", "type": "function", "function": {"name": "now", "arguments": "{}"}}
    text = render(
        [
            HELLO,
            {"role": "assistant", "reasoning": "r", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "12:00"},
        ]
    )
    assert text.endswith(
        "<|im_start|>assistant\n<think>r</think><tool_call>\n<function=now>\n</function>\n"
        "</tool_call><|im_end|><|im_start|>tool\n<tool_response>\n12:00\n</tool_response>\n"
        "<|im_end|><|im_start|>assistant\n"
    )


def test_e8_media_parts_keep_the_order_of_the_request(render):
    parts = [
        {"type": "image_url", "image_url": {"url": "a"}},
        {"type": "text", "text": "Describe."},
        {"type": "video_url", "video_url": {"url": "b"}},
        {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
        {"type": "text", "text": "End"},
    ]
    assert render([{"role": "user", "content": parts}]) == (
        SYSTEM + "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe."
        "<|vision_start|><|video_pad|><|vision_end|>"
        "<|mimo_audio_start|><|audio_pad|><|mimo_audio_end|>End<|im_end|>" + OPEN
    )


def test_e9_other_roles_in_the_middle(render):
    text = render(
        [
            HELLO,
            {"role": "system", "content": "S2"},
            {"role": "developer", "content": "D"},
            {"role": "user", "content": "x"},
        ]
    )
    assert text.endswith(
        "<|im_end|><|im_start|>system\nS2<|im_end|><|im_start|>developer\nD<|im_end|>"
        "<|im_start|>user\nx<|im_end|>" + OPEN
    )


def test_e10_tools_block(render):
    tool = {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": " Get the current weather\n",
            "parameters": {
                "type": "object",
                "properties": {
                    "location": {"type": "string", "description": "City name"},
                    "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                    "days": {"type": ["integer", "null"]},
                },
                "required": ["location"],
                "additionalProperties": False,
            },
            "strict": True,
        },
    }
    block = TOOLS_TEXT.format(
        tools="\n<function>\n<name>get_weather</name>\n"
        "<description>Get the current weather</description>\n<parameters>\n"
        "<parameter>\n<name>location</name>\n<type>string</type>\n"
        "<description>City name</description>\n</parameter>\n"
        "<parameter>\n<name>unit</name>\n<type>string</type>\n"
        '<enum>["celsius", "fahrenheit"]</enum>\n</parameter>\n'
        "<parameter>\n<name>days</name>\n<type>['integer', 'null']</type>\n</parameter>\n"
        '<required>["location"]</required>\n<additionalProperties>False</additionalProperties>\n'
        "</parameters>\n<strict>True</strict>\n</function>"
    )
    system = SYSTEM.removesuffix("<|im_end|>") + block + "<|im_end|>"
    expected = system + "<|im_start|>user\nHello<|im_end|>" + OPEN
    assert render([HELLO], tools=[tool]) == expected
    assert render([HELLO], tools=[tool["function"]]) == expected


def test_a_tool_without_parameters_or_with_a_null_description(render):
    text = render([HELLO], tools=[{"name": "now", "description": None, "x": {"é": None}}])
    assert (
        "<tools>\n<function>\n<name>now</name>\n<description>None</description>\n"
        '<parameters>\n</parameters>\n<x>{"é": null}</x>\n</function>\n</tools>'
    ) in text


def test_a_property_may_be_called_like_a_method(render):
    properties = {"items": {"type": "array", "items": {"type": "string"}}, "keys": {}}
    tool = {"name": "f", "parameters": {"properties": properties, "values": 1}}
    assert (
        "<parameter>\n<name>items</name>\n<type>array</type>\n"
        '<items>{"type": "string"}</items>\n</parameter>\n'
        "<parameter>\n<name>keys</name>\n</parameter>\n<values>1</values>\n</parameters>"
    ) in render([HELLO], tools=[tool])


def test_results_of_tools_may_hold_media(render):
    parts = [{"type": "text", "text": "see"}, {"type": "image", "image": "x"}]
    text = render([HELLO, {"role": "tool", "content": parts}])
    shown = "see<|vision_start|><|image_pad|><|vision_end|>"
    assert f"<tool_response>\n{shown}\n</tool_response>" in text


def test_a_leading_tool_message_has_no_header(render):
    text = render([{"role": "system", "content": "S"}, {"role": "tool", "content": "r"}])
    assert text == (
        "<|im_start|>system\nS<|im_end|><tool_response>\nr\n</tool_response>\n<|im_end|>" + OPEN
    )


def test_the_final_message_is_left_open(template):
    messages = [HELLO, {"role": "assistant", "content": "<think>a</think>One, two"}]
    text = template.render(messages, continue_final_message=True)
    assert text.endswith("<|im_end|><|im_start|>assistant\n<think>a</think>One, two")
    parts = [HELLO, {"role": "assistant", "content": [{"type": "text", "text": "One "}]}]
    assert template.render(parts, continue_final_message=True).endswith("<think></think>One ")


@pytest.mark.parametrize(
    "last", [HELLO, {"role": "assistant", "content": "", "tool_calls": [{"function": {}}]}]
)
def test_only_an_open_assistant_message_can_be_continued(template, last):
    with pytest.raises(RequestError, match="continue_final_message"):
        template.render([last], continue_final_message=True)


def test_a_template_that_hides_the_last_message_cannot_continue_it():
    with pytest.raises(RequestError, match="cannot be continued"):
        ChatTemplate("fixed").render(
            [{"role": "assistant", "content": "x"}], continue_final_message=True
        )


def test_whitespace_and_helpers_are_those_of_transformers():
    source = (
        "{% for m in messages %}\n    {% if m.role == 'skip' %}\n    {% continue %}\n"
        "    {% endif %}\n[{{ m | tojson }}]\n{% endfor %}\n{{ strftime_now('%%') }}{{ eos_token }}"
    )
    template = ChatTemplate(source, special_tokens={"eos_token": "<|im_end|>"})
    text = template.render([{"role": "skip"}, {"role": "<é>"}])
    assert text == '[{"role": "<é>"}]\n%<|im_end|>'


def test_a_template_refuses_by_raise_exception():
    with pytest.raises(RequestError, match="roles must alternate"):
        ChatTemplate("{{ raise_exception('roles must alternate') }}").render([HELLO])


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__.__mro__ }}",
        "{% set _ = messages.append(1) %}",
        "{{ messages[0]['content'].nothing.at_all }}",
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set r = range(99999) %}{% for a in r %}{% for b in r %}{% endfor %}{% endfor %}",
    ],
)
def test_what_a_template_may_not_do_is_a_request_error(source):
    with pytest.raises(RequestError, match="cannot render"):
        ChatTemplate(source).render([HELLO])


def test_a_template_that_is_not_jinja_is_refused_at_start():
    with pytest.raises(CheckpointError, match="not valid Jinja"):
        ChatTemplate("{% for %}")


def test_no_messages_and_reserved_variables_are_refused(template):
    with pytest.raises(RequestError, match="cannot be empty"):
        template.render([])
    with pytest.raises(RequestError, match="may not set messages"):
        template.render([HELLO], template_kwargs={"messages": []})
