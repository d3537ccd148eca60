"""A request's tools to type sets, and what is refused."""

import json

import pytest

from mimo_engine.chat.tools import tool_schemas
from mimo_engine.errors import RequestError


def tool(parameters=None, name="f"):
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


def types_of(schema, **root):
    (tool_schema,) = tool_schemas([tool({"properties": {"p": schema}, **root})]).values()
    return " ".join(sorted(tool_schema.types_of("p")))


@pytest.mark.parametrize(
    ("schema", "types"),
    [
        ({"type": "integer"}, "integer"),
        ({"type": ["integer", "null"]}, "integer null"),
        ({"type": "varchar"}, "string"),
        ({"type": "dict"}, "object"),
        ({"type": "any"}, "string"),
        ({}, "string"),
        (True, "string"),
        ({"description": "x"}, "string"),
        ({"enum": ["a", 1, None]}, "integer null string"),
        ({"enum": [True, 1.5, [], {}]}, "array boolean number object"),
        ({"type": "string", "enum": ["1"]}, "string"),
        ({"type": ["string", "null"], "enum": [None]}, "null"),
        ({"const": 5}, "integer"),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, "null string"),
        ({"oneOf": [{"type": "integer"}, {"type": "array"}]}, "array integer"),
        ({"anyOf": [{"type": "integer"}, {}]}, "string"),
        ({"allOf": [{"type": ["null", "array"]}, {"maxItems": 1}, {"type": "array"}]}, "array"),
        ({"allOf": [{"type": "number"}, {"type": "integer"}]}, "integer"),
        ({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}, "object"),
        ({"type": "integer", "const": "contradiction"}, "integer"),
        ({"$ref": "#/$defs/Unit"}, "integer"),
        ({"$ref": "#/$defs/a~1b~0c%20d"}, "boolean"),
        ({"$ref": "#/$defs/Union/anyOf/1"}, "null"),
        ({"$ref": "#/$defs/Tree"}, "array integer"),
        ({"$ref": "#/$defs/Circle"}, "string"),
        ({"$ref": "#"}, "object"),
        ({"anyOf": [{"$ref": "#/$defs/Unit"}, {"$ref": "#/$defs/Union"}]}, "array integer null"),
    ],
)  # fmt: skip
def test_a_schema_is_reduced_to_the_types_that_it_allows(schema, types):
    definitions = {
        "Unit": {"type": "integer"},
        "Union": {"anyOf": [{"type": "array"}, {"type": "null"}]},
        "Tree": {
            "anyOf": [
                {"type": "integer"},
                {"type": "array", "items": {"$ref": "#/$defs/Tree"}},
                {"$ref": "#/$defs/Tree"},
            ]
        },
        "Circle": {"$ref": "#/$defs/Circle"},
        "a/b~c d": {"type": "boolean"},
    }
    assert types_of(schema, type="object", **{"$defs": definitions}) == types


def test_parameters_are_found_through_references_and_in_branches():
    parameters = {
        "$ref": "#/$defs/Root",
        "$defs": {
            "Root": {
                "type": "object",
                "properties": {"a": {"type": "integer"}},
                "allOf": [{"properties": {"b": {"type": "null"}}}],
                "anyOf": [
                    {"properties": {"c": {"type": "array"}}},
                    {"properties": {"c": {"type": "object"}}},
                    {"$ref": "#/$defs/Root"},
                ],
            }
        },
    }
    (schema,) = tool_schemas([tool(parameters)]).values()
    assert {name: sorted(types) for name, types in schema.parameters.items()} == {
        "a": ["integer"],
        "b": ["null"],
        "c": ["array", "object"],
    }
    assert schema.types_of("unknown") == {"string"}


def test_a_tool_without_parameters_has_none():
    schemas = tool_schemas([tool(), tool({}, name="g"), {"function": {"name": "h"}}])
    assert [(name, dict(schema.parameters)) for name, schema in schemas.items()] == [
        ("f", {}),
        ("g", {}),
        ("h", {}),
    ]


@pytest.mark.parametrize(
    ("tools", "param", "message"),
    [
        ([{"type": "web_search"}], "tools[0]", "not a function tool"),
        (["f"], "tools[0]", "not a function tool"),
        ([{"type": "function"}], "tools[0]", "must be an object"),
        ([tool(name="a b")], "tools[0].function.name", "without white space"),
        ([tool(name="a>")], "tools[0].function.name", "without white space"),
        ([tool(name="")], "tools[0].function.name", "1 to 256"),
        ([tool(name=5)], "tools[0].function.name", "must be a string"),
        ([tool(), tool()], "tools[1].function.name", "already the name"),
    ],
)  # fmt: skip
def test_what_cannot_be_a_tool_is_refused_by_name(tools, param, message):
    with pytest.raises(RequestError, match=message) as error:
        tool_schemas(tools)
    assert error.value.param == param


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ([], "must be an object"),
        ({"type": "array"}, 'must be "object"'),
        ({"properties": []}, "properties must be an object"),
        ({"properties": {"p": 5}}, "must be an object or a boolean, not 5"),
        ({"properties": {"p>": {}}}, "'p>' cannot be written in a call"),
        ({"properties": {"p": {"type": "strin"}}}, "unknown type 'strin'"),
        ({"properties": {"p": {"anyOf": {}}}}, "anyOf must be an array"),
        ({"properties": {"p": {"$ref": "#/$defs/X"}}}, "points to nothing"),
        ({"properties": {"p": {"$ref": "http://x"}}}, "must point into the same schema"),
        ({"properties": {"p": {"$ref": []}}}, "must point into the same schema"),
    ],
)
def test_a_schema_that_cannot_be_read_is_refused_with_its_tool(parameters, message):
    with pytest.raises(RequestError, match=message) as error:
        tool_schemas([tool(name="g"), tool(parameters)])
    assert str(error.value).startswith("Tool 1 function has invalid 'parameters' schema: ")
    assert error.value.param == "tools[1].function.parameters"


def test_deep_schemas_are_refused():
    schema = {"type": "integer"}
    for _ in range(500):
        schema = {"anyOf": [schema]}
    with pytest.raises(RequestError, match="deep"):
        types_of(schema)
    chain = {f"D{n}": {"$ref": f"#/$defs/D{n + 1}"} for n in range(500)} | {"D500": {}}
    with pytest.raises(RequestError, match="deep"):
        types_of({"$ref": "#/$defs/D0"}, **{"$defs": chain})


def test_a_schema_that_doubles_at_each_reference_is_read_once():
    # Walked without memory, this has 2 ** 90 leaves.
    definitions = {
        f"D{n}": {"anyOf": [{"$ref": f"#/$defs/D{n + 1}"}, {"$ref": f"#/$defs/D{n + 1}"}]}
        for n in range(45)
    } | {"D45": {"type": "boolean"}}
    assert types_of({"$ref": "#/$defs/D0"}, **{"$defs": definitions}) == "boolean"


def test_a_large_schema_with_many_names_for_one_definition_is_linear():
    big = {"anyOf": [{"enum": [n]} for n in range(5_000)]}
    properties = {f"p{n}": {"$ref": "#/$defs/big"} for n in range(5_000)}
    (schema,) = tool_schemas(
        json.loads(json.dumps([tool({"properties": properties, "$defs": {"big": big}})]))
    ).values()
    assert schema.types_of("p4999") == {"integer"}
