"""Tool calls are right when they are exactly those expected, whatever odd things a model writes."""

import json

import pytest
from eval_helpers import graded, write_jsonl

from mimo_engine.errors import ConfigError
from mimo_engine.eval.evaluation import Options
from mimo_engine.eval.tool_calls import tool_calls

TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
MESSAGES = [{"role": "user", "content": "Add 1 and 2, and 3 and 4."}]


def call(name="add", arguments=None, **parts):
    text = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return {"type": "function", "function": {"name": name, "arguments": text}, **parts}


def item_for(tmp_path, *calls, **options):
    rows = [{"messages": MESSAGES, "tools": [TOOL], "calls": list(calls), "comment": "unread"}]
    (item,) = tool_calls(Options(data=write_jsonl(tmp_path / "rows.jsonl", rows), **options)).items
    return item


def test_messages_and_tools_go_out_as_they_are(tmp_path):
    body = item_for(tmp_path, {"name": "add", "arguments": {}}).pose().request.body
    assert body["messages"] == MESSAGES
    assert body["tools"] == [TOOL]
    assert body["temperature"] == 0


@pytest.mark.parametrize(
    ("arguments", "note"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, ""),
        ({"b": {"c": [1.0, 2]}, "a": 1}, ""),
        ({"a": True, "b": {"c": [1, 2]}}, "wrong arguments"),
        ({"a": 1, "b": {"c": [2, 1]}}, "wrong arguments"),
        ({"a": 1, "b": {"c": [1, 2]}, "d": None}, "wrong arguments"),
        ({"a": 1}, "wrong arguments"),
        ({"a": "1", "b": {"c": [1, 2]}}, "wrong arguments"),
        ('{"a": 1, "b": ', "wrong arguments"),
        ("[" * 100_000, "wrong arguments"),
        (None, "wrong arguments"),
    ],
)
def test_arguments_are_equal_as_json(tmp_path, arguments, note):
    item = item_for(tmp_path, {"name": "add", "arguments": {"a": 1, "b": {"c": [1, 2]}}})
    grade = graded(item, None, tool_calls=[call(arguments=arguments)])
    assert (grade.note, grade.count) == (note, int(not note))


def test_calls_of_one_answer_have_no_order_but_a_number(tmp_path):
    one, two = {"a": 1, "b": 2}, {"a": 3, "b": 4}
    item = item_for(tmp_path, {"name": "add", "arguments": one}, {"name": "add", "arguments": two})
    right = [call(arguments=two), call(arguments=one)]
    assert graded(item, None, tool_calls=right).count == 1
    assert graded(item, None, tool_calls=right[:1]).note == "too few calls"
    assert graded(item, None, tool_calls=[*right, right[0]]).note == "too many calls"
    assert graded(item, None, tool_calls=right[:1] * 2).note == "wrong arguments"
    assert graded(item, None, tool_calls=[right[0], call("sub", one)]).note == "wrong name"


def test_where_no_call_is_expected_a_text_is_right(tmp_path):
    item = item_for(tmp_path)
    assert graded(item, "I cannot do that.").count == 1
    assert graded(item, None, tool_calls=[call(arguments={})]).note == "too many calls"


@pytest.mark.parametrize("calls", [[], [{"name": "add", "arguments": {}}]])
@pytest.mark.parametrize(
    ("content", "finish_reason"), [(None, "stop"), ("", "stop"), ("<think>I cannot", "length")]
)
def test_an_answer_without_calls_and_text_is_wrong(tmp_path, calls, content, finish_reason):
    item = item_for(tmp_path, *calls)
    grade = graded(item, content, finish_reason=finish_reason, tool_calls=[])
    assert (grade.count, grade.note) == (0, "empty")


@pytest.mark.parametrize(
    "calls", [None, 3, "add", [3], [{}], [{"function": 3}], [{"function": {}}], {"name": "add"}]
)
def test_odd_calls_are_wrong_and_break_nothing(tmp_path, calls):
    item = item_for(tmp_path, {"name": "add", "arguments": {}})
    assert graded(item, None, tool_calls=calls).count == 0


def test_columns_may_be_json_text(tmp_path):
    row = {
        "messages": json.dumps(MESSAGES),
        "tools": json.dumps([TOOL]),
        "calls": '[{"name": "add", "arguments": {"a": 1}}]',
    }
    (item,) = tool_calls(Options(data=write_jsonl(tmp_path / "rows.jsonl", [row]))).items
    assert item.pose().request.body["messages"] == MESSAGES
    assert graded(item, "", tool_calls=[call(arguments={"a": 1})]).count == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"calls": [{"name": "add", "arguments": "{}"}]}, "an object of arguments"),
        ({"calls": [{"arguments": {}}]}, "must have a name"),
        ({"calls": "["}, "calls is not JSON"),
        ({"tools": None}, "tools must be a list of objects"),
        ({"messages": [3]}, "messages must be a list of objects"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, changes, message):
    row = {"messages": MESSAGES, "tools": [TOOL], "calls": [], **changes}
    with pytest.raises(ConfigError, match=rf"row 1: .*{message}"):
        tool_calls(Options(data=write_jsonl(tmp_path / "rows.jsonl", [row])))
