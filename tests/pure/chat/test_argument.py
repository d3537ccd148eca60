"""Raw text to JSON by a set of types: the table of protocol.md 4.3, value by value."""

import json

import pytest

from mimo_engine.chat.argument import Argument, typed_json

HUGE = "9" * 5000


@pytest.mark.parametrize(
    ("types", "raw", "expected"),
    [
        ("null", "null", "null"),
        ("null", " None\n", "null"),
        ("null", "NULL", "null"),
        ("null", "nothing", '"nothing"'),
        ("boolean", "True", "true"),
        ("boolean", " FALSE ", "false"),
        ("boolean", "1", '"1"'),
        ("boolean", "None", '"None"'),
        ("integer", "42", "42"),
        ("integer", " -7\n", "-7"),
        ("integer", "007", "7"),
        ("integer", "-0", "0"),
        ("integer", "000", "0"),
        ("integer", "2.0", "2"),
        ("integer", "-1e3", "-1000"),
        ("integer", "3.5", '"3.5"'),
        ("integer", "3.00000000000000000001", '"3.00000000000000000001"'),
        ("integer", "1e999999999", '"1e999999999"'),
        ("integer", "٣", '"٣"'),
        ("integer", "1_000", '"1_000"'),
        ("integer", "", '""'),
        ("integer", HUGE, HUGE),
        ("number", "2", "2"),
        ("number", "2.50", "2.50"),
        ("number", "1e+16", "1e+16"),
        ("number", "nan", '"nan"'),
        ("number", ".5", '".5"'),
        ("integer number", "2.0", "2"),
        ("integer number", "2.5", "2.5"),
        ("array", '["a", 1.50]', '["a", 1.50]'),
        ("array", " [1,\n2]\n", "[1,\n2]"),
        ("array", f"[{HUGE}]", f"[{HUGE}]"),
        ("array", "['a', True, None, -0.5]", '["a", true, null, -0.5]'),
        ("array", "['say \"hi\"', \"it's\", 'it\\'s', '\\x1b']",
         '["say \\"hi\\"", "it\'s", "it\'s", "\\u001b"]'),
        ("array", "['\\\\', '\\n', 'é']", '["\\\\", "\\n", "é"]'),
        ("array", '{"a": 1}', '"{\\"a\\": 1}"'),
        ("array", "(1, 2)", '"(1, 2)"'),
        ("array", "[NaN]", '"[NaN]"'),
        ("array", "[1", '"[1"'),
        ("array", "[__import__('os')]", "\"[__import__('os')]\""),
        ("object", '{"a": {"b": [null]}}', '{"a": {"b": [null]}}'),
        ("object", "{'a': {'b': [False]}}", '{"a": {"b": [false]}}'),
        ("object", "[1]", '"[1]"'),
        ("object null", "None", "null"),
        ("string", " null ", '" null "'),
        ("string", "null", '"null"'),
        ("string", '"\\\n\x01é😀', '"\\"\\\\\\n\\u0001é😀"'),
        ("string null", "null", "null"),
        ("string null", "None", "null"),
        ("string null", "none", '"none"'),
        ("string null", "null ", '"null "'),
        ("string integer", "42", '"42"'),
        ("string boolean", "true", '"true"'),
        ("string array", "[1]", '"[1]"'),
    ],
)  # fmt: skip
def test_a_value_is_typed_by_the_first_type_that_it_can_be(types, raw, expected):
    types = frozenset(types.split())
    assert typed_json(raw, types) == expected
    # The same in pieces.
    argument = Argument(types)
    fragments = [argument.begin(), *(argument.add(character)[0] for character in raw)]
    assert "".join(fragments) + argument.end()[0] == expected


@pytest.mark.parametrize(
    "raw", ["[" * 100_000, "['" * 100_000, "[" + "'\\" * 100_000, "{" * 100_000]
)
def test_a_hostile_value_stays_text(raw):
    assert json.loads(typed_json(raw, frozenset({"array", "object"}))) == raw


@pytest.mark.parametrize("raw", ["", "n", "nul", "null", "Non", "text"])
@pytest.mark.parametrize("types", ["string", "string null", "integer"])
def test_the_raw_text_is_accounted_for_wherever_the_value_ends(types, raw):
    for last in ("end", "cut"):
        argument = Argument(frozenset(types.split()))
        accounted = "".join(argument.add(character)[1] for character in raw)
        assert accounted + getattr(argument, last)()[1] == raw


def test_a_value_that_was_cut_sends_what_is_certain():
    cuts = []
    for types in ("string null", "integer", "string"):
        argument = Argument(frozenset(types.split()))
        argument.add("nul")
        cuts.append(argument.cut())
    assert cuts == [('"nul', "nul"), ("", "nul"), ("", "")]
