"""Every text of a tool grammar parses into calls whose arguments are valid under their schemas."""

import json

import jsonschema
import pytest

from mimo_engine.chat.events import Content, ToolCallDelta, ToolCallEnd, ToolCallStart
from mimo_engine.chat.stream_parser import StreamParser
from mimo_engine.chat.tools import tool_schemas
from mimo_engine.errors import RequestError
from mimo_engine.grammar.tool_grammar import tool_grammar

POINT = {
    "type": "object",
    "properties": {"x": {"type": "number"}, "y": {"type": "integer", "minimum": -5, "maximum": 90}},
    "required": ["x"],
    "additionalProperties": False,
}
PROPERTIES = {
    "text": {"type": "string"},
    "unit": {"type": "string", "enum": ["c", "ce", "c</", "f", "\n<parameter=x>", "</parameter>"]},
    "mode": {"const": 'a "quoted" \\ mode\n'},
    "code": {"type": "string", "pattern": r"^[a-c/]{2,3}$|x\d|^$", "maxLength": 6},
    "few": {"type": "string", "minLength": 2, "maxLength": 4},
    "maybe": {"type": ["string", "null"], "maxLength": 3},
    "either": {"anyOf": [{"type": "string", "enum": ["auto"]}, {"type": "null"}]},
    "mixed": {"enum": ["one", 1, None]},
    "number": {"type": ["number", "null"]},
    "flag": {"type": "boolean"},
    "level": {"enum": [1, 2, 3]},
    "point": {"$ref": "#/$defs/point"},
    "points": {"type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2},
    "name": {"$ref": "#/$defs/name"},
    "both": {"allOf": [{"type": "string"}, {"allOf": [{"maxLength": 2}]}]},
    "anything": {},
    "union": {"oneOf": [{"type": "integer"}, {"type": "array", "items": {"type": "boolean"}}]},
}
DEFS = {"point": POINT, "name": {"type": "string", "maxLength": 5}}


def tool(name, **parameters):
    function = {"name": name, "parameters": {"type": "object", "$defs": DEFS, **parameters}}
    return {"type": "function", "function": function}


TOOLS = [
    tool("all-of_them", properties=PROPERTIES, required=["unit", "point", "undeclared"]),
    {"type": "function", "function": {"name": "now"}},
    tool("one", properties={"text": PROPERTIES["text"]}, required=["text"]),
    tool("strict", properties={"flag": PROPERTIES["flag"]}, additionalProperties=False),
]


def calls_of(text, tools):
    """(name, arguments) of each call; nothing else may be in the text."""
    parser = StreamParser(thinking="off", tools=tool_schemas(tools))
    events = [*parser.push(text), *parser.finish()]
    assert not any(isinstance(event, Content) for event in events), text
    names = [event.name for event in events if isinstance(event, ToolCallStart)]
    assert sum(isinstance(event, ToolCallEnd) for event in events) == len(names)
    arguments = [""] * len(names)
    for event in events:
        if isinstance(event, ToolCallDelta):
            arguments[event.index] += event.arguments
    return [(name, json.loads(text)) for name, text in zip(names, arguments, strict=True)]


def check_calls(text, tools):
    calls = calls_of(text, tools)
    assert calls
    schemas = {t["function"]["name"]: t["function"].get("parameters", {}) for t in tools}
    for name, arguments in calls:
        jsonschema.validate(arguments, schemas[name])
    return calls


@pytest.mark.parametrize("count", [60, pytest.param(3000, marks=pytest.mark.prove)])
def test_every_text_of_the_grammar_is_valid_calls(walk, count):
    seen: set[str] = set()
    num_whole = 0
    endings = ("</parameter>\n", "\n</function>\n", '"')
    for text in walk(tool_grammar(TOOLS), count, endings=endings, max_tokens=4000):
        if text is None:
            continue
        num_whole += 1
        for name, arguments in check_calls(text, TOOLS):
            seen |= {name, *arguments}
    assert num_whole > count * 0.9
    assert seen == {"all-of_them", "now", "one", "strict", "undeclared", *PROPERTIES}


def test_values_have_no_markup_that_a_reader_would_take_for_their_end(compiler, tokenizer, spell):
    spec = tool_grammar([TOOLS[2]])
    head = "\n<function=one>\n<parameter=text>"
    for value, is_allowed in {
        "": True,
        "x < y </p </parameters> <parameter=z> </function>": True,
        "if a:\n\treturn <function": True,
        "a</parameter>b": False,
        "a\n<parameter=z>": False,
        "a\n</function>": False,
        "</tool_call>": False,
        "<tool_call>": False,
    }.items():
        text = f"{head}{value}</parameter>\n</function>\n"
        ids = [tokenizer.id_of("<tool_call>"), *spell(text)]
        matcher = compiler.matcher(spec)
        taken = [matcher.accept(token_id) for token_id in (*ids, tokenizer.id_of("</tool_call>"))]
        assert all(taken) == is_allowed, value
        if is_allowed:
            whole = f"<tool_call>{text}</tool_call>"
            assert calls_of(whole, TOOLS) == [("one", {"text": value})]


def test_without_parallel_calls_there_is_exactly_one(walk):
    tools = [TOOLS[1], TOOLS[3]]
    several = [len(check_calls(text, tools)) for text in walk(tool_grammar(tools), 20)]
    assert max(several) > 1
    for text in walk(tool_grammar(tools, parallel=False), 20):
        assert len(check_calls(text, tools)) == 1


DOUBLING = {
    **{f"u{i}": {"anyOf": [{"$ref": f"#/$defs/u{i + 1}"}] * 2} for i in range(60)},
    "u60": {"type": "integer"},
}


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"anyOf": [{"required": ["a"]}]}, "'anyOf' at the top"),
        ({"minProperties": 1}, "minProperties"),
        ({"properties": {"a": False}, "required": ["a"]}, "no value"),
        ({"required": ["a"], "additionalProperties": False}, "no value"),
        ({"properties": {"a": {"enum": ["</parameter>"]}}, "required": ["a"]}, "no value"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "not a schema"),
        ({"properties": {"a": {"$ref": "#/properties/a"}}}, "circle"),
        ({"properties": {"a": {"allOf": [{"$ref": "#/properties/a"}]}}}, "circle"),
        ({"properties": {"a": {"anyOf": [{"$ref": "#/properties/a"}]}}}, "circle"),
        ({"properties": {"a": {"$ref": "#/$defs/u0"}}, "$defs": DOUBLING}, "too many"),
        ({"properties": {"a": {"type": "string", "minLength": "0})/"}}}, "minLength"),
        ({"properties": {"a": {"type": "string", "pattern": 1}}}, "pattern"),
        ({"properties": {"a": {"anyOf": 1}}}, "anyOf"),
        ({"properties": {"a": {"enum": "x"}}}, "enum"),
        ({"required": [[]]}, "required"),
        (
            {
                "properties": {f"p{i}": {"$ref": "#/$defs/big"} for i in range(1000)},
                "$defs": {"big": {"type": "array", "description": "x" * 10_000}},
            },
            "bytes",
        ),
        (
            {"properties": {"a": {"oneOf": [{"type": "string"}, {"maxLength": 2}]}}},
            "several kinds of string",
        ),
        ({"minProperties": "x"}, "minProperties"),
        ({"properties": {"a": {"const": 2**20 * "x"}}}, "bytes"),
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused(parameters, message):
    with pytest.raises(RequestError, match=message) as caught:
        tool_grammar([tool("t", **parameters)])
    assert caught.value.param == "tools"


class Counted(dict):
    """Definitions that count how often one of them is visited."""

    num_visits = 0

    def get(self, key):
        Counted.num_visits += 1
        return super().get(key)


def test_all_tools_together_have_one_bound_of_work(monkeypatch):
    # None of them has a rule for its parameter, so that the grammar stays small.
    defs = Counted({f"u{i}": {"anyOf": [{"$ref": f"#/$defs/u{i + 1}"}] * 2} for i in range(8)})
    defs["u8"] = {"type": "string", "enum": ["</parameter>"]}
    parameters = {"properties": {"a": {"$ref": "#/$defs/u0"}}, "$defs": defs}
    monkeypatch.setattr(Counted, "num_visits", 0)
    tool_grammar([tool("one", **parameters)])
    of_one = Counted.num_visits
    assert of_one >= 2**8
    with pytest.raises(RequestError, match=r"those of all tools are too many") as caught:
        tool_grammar([tool(f"t{i}", **parameters) for i in range(1000)])
    assert caught.value.param == "tools"
    assert Counted.num_visits < 100 * of_one


@pytest.mark.parametrize(
    "leaf",
    [
        {"type": "string", "enum": ["</parameter>" + "x" * 100_000]},
        {"type": "string", "pattern": "x" * 10_000},
    ],
)
def test_what_is_long_and_named_often_is_too_much_work(leaf):
    properties = {f"p{i}": {"$ref": "#/$defs/leaf"} for i in range(100)}
    with pytest.raises(RequestError, match=r"too many|bytes"):
        tool_grammar([tool("t", properties=properties, **{"$defs": {"leaf": leaf}})])


def test_a_pattern_beyond_the_library_is_refused_by_the_check(compiler):
    spec = tool_grammar([tool("t", properties={"a": {"type": "string", "pattern": "a(?=b)"}})])
    with pytest.raises(RequestError, match="cannot be enforced"):
        compiler.check(spec)
