"""The text tasks: their answers are right, others are not, and the splits share no problem."""

import itertools
import json
import random
from collections import Counter

import pytest

from mimo_engine.chat.events import Content, Reasoning, ToolCallDelta, ToolCallStart
from mimo_engine.chat.stream_parser import StreamParser, thinking_after
from mimo_engine.chat.template import ChatTemplate, family_template, normalise_messages
from mimo_engine.chat.tools import tool_schemas
from mimo_engine.demo.arithmetic_tasks import Sum
from mimo_engine.demo.list_tasks import Count
from mimo_engine.demo.text_tasks import TEXT_TASKS

TEMPLATE = ChatTemplate(family_template())
BY_NAME = {task.name: task for task in TEXT_TASKS}
ODD = (
    {},
    {"role": "assistant", "content": None},
    {"content": None, "reasoning_content": None, "tool_calls": None},
    {"content": "", "tool_calls": []},
    {"content": 132},
    {"content": ["a", "b"]},
    {"content": "\ud800 \x00 </think> {"},
    {"content": "[" * 100_000},
    {"content": "9" * 10_000},
    {"content": "NaN"},
    {"content": "", "tool_calls": "call"},
    {"content": "", "tool_calls": [None]},
    {"content": "", "tool_calls": [{"function": None}]},
    {"content": "", "tool_calls": [{"function": {"name": None, "arguments": 3}}]},
    {"content": "", "tool_calls": [{"function": {"name": "get_time", "arguments": "{"}}]},
    {"content": "", "tool_calls": [{"function": {"name": "get_time", "arguments": "[1]"}}]},
)

every_task = pytest.mark.parametrize("task", TEXT_TASKS, ids=lambda task: task.name)


def examples(task, split, count, seed=0):
    rng = random.Random(seed)
    return [task.make(rng, split) for _ in range(count)]


def as_served(example):
    """The example's answer as the server's message after a model wrote it, and the prompt."""
    messages = normalise_messages(example.messages)
    prompt = TEMPLATE.render(
        messages, tools=example.tools, template_kwargs={"enable_thinking": example.thinks}
    )
    whole = TEMPLATE.render(
        [*messages, *normalise_messages([example.answer])],
        tools=example.tools,
        add_generation_prompt=False,
    )
    assert whole.startswith(prompt)
    assert whole.endswith("<|im_end|>")
    parser = StreamParser(thinking=thinking_after(prompt), tools=tool_schemas(example.tools))
    events = parser.push(whole[len(prompt) :].removesuffix("<|im_end|>")) + parser.finish()
    calls = [
        {"type": "function", "function": {"name": event.name, "arguments": ""}}
        for event in events
        if isinstance(event, ToolCallStart)
    ]
    for event in events:
        if isinstance(event, ToolCallDelta):
            calls[event.index]["function"]["arguments"] += event.arguments
    return {
        "role": "assistant",
        "content": "".join(event.text for event in events if isinstance(event, Content)) or None,
        "reasoning_content": "".join(e.text for e in events if isinstance(e, Reasoning)),
        "tool_calls": calls or None,
    }


def best_constant(task):
    """How often the most frequent answer is right."""
    answers = Counter(
        json.dumps([example.answer["content"], example.answer["tool_calls"]], sort_keys=True)
        for example in examples(task, "test", 3000)
    )
    return answers.most_common(1)[0][1] / 3000


def random_order(task):
    """How often the items of the answer are right in random order."""
    rng = random.Random(0)
    num_right = 0
    for example in examples(task, "test", 3000):
        items = example.answer["content"].split(", ")
        rng.shuffle(items)
        num_right += task.is_right(example, {"content": ", ".join(items)})
    return num_right / 3000


def random_field(task):
    """How often a sentence with any one of the result's numbers is right."""
    rng = random.Random(0)
    num_right = 0
    for example in examples(task, "test", 3000):
        number = rng.choice(list(json.loads(example.messages[-1]["content"]).values()))
        sentence = f"It is {number} for {example.target.subject}."
        num_right += task.is_right(example, {"content": sentence})
    return num_right / 3000


GUESSES = {"reverse": random_order, "sort": random_order, "tool_result": random_field}


@every_task
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_answer_of_an_example_is_right_also_as_the_server_gives_it_back(task, split):
    for example in examples(task, split, 200):
        assert task.is_right(example, example.answer)
        served = as_served(example)
        assert task.is_right(example, served)
        assert served["reasoning_content"] == example.answer["reasoning_content"]
        for call, made in zip(
            served["tool_calls"] or [], example.answer["tool_calls"], strict=True
        ):
            assert call["function"]["name"] == made["function"]["name"]
            assert json.loads(call["function"]["arguments"]) == made["function"]["arguments"]


@every_task
def test_the_answer_to_another_problem_is_wrong(task):
    some = examples(task, "train", 300)
    num_compared = 0
    for example, other in itertools.pairwise(some):
        answers = [(one.answer["content"], one.answer["tool_calls"]) for one in (example, other)]
        if answers[0] != answers[1]:
            num_compared += 1
            assert not task.is_right(example, other.answer)
    assert num_compared > 200


@every_task
def test_an_odd_answer_is_wrong_and_raises_nothing(task):
    for example in examples(task, "test", 20):
        assert not any(task.is_right(example, answer) for answer in ODD)


@every_task
def test_the_splits_have_no_problem_in_common(task):
    train, test = (
        {example.target.key for example in examples(task, split, 2000)}
        for split in ("train", "test")
    )
    assert train
    assert test
    assert not train & test


@every_task
def test_the_same_state_of_the_generator_makes_the_same_example(task):
    first, again = examples(task, "train", 20, seed=7), examples(task, "train", 20, seed=7)
    assert [repr(example) for example in first] == [repr(example) for example in again]
    assert len({repr(example) for example in first}) > 10


@every_task
def test_the_baseline_is_what_its_guess_measures(task):
    measured = GUESSES.get(task.name, best_constant)(task)
    assert task.baseline == pytest.approx(measured, abs=0.02)


@every_task
def test_conversations_are_short_and_plain(task):
    for example in examples(task, "train", 300):
        texts = [message["content"] for message in (*example.messages, example.answer)]
        assert "".join(texts).isascii()
        assert sum(map(len, texts)) < 900
        assert len(json.dumps(list(example.tools))) < 900


@pytest.mark.parametrize(
    ("problem", "steps"),
    [
        (
            Sum(first=47, sign="+", second=85),
            "47+85: ones 7+5=12 carry 1; tens 4+8+1=13 carry 1; so 132",
        ),
        (Sum(first=3, sign="+", second=4), "3+4: ones 3+4=7; so 7"),
        (
            Sum(first=103, sign="-", second=98),
            "103-98: ones 13-8=5 borrow 1; tens 10-9-1=0 borrow 1; hundreds 1-0-1=0; so 005",
        ),
    ],
)
def test_a_sum_is_worked_out_column_by_column(problem, steps):
    assert problem.steps == steps


def test_every_column_leads_to_the_result():
    rng = random.Random(3)
    for _ in range(2000):
        example = BY_NAME["sums"].make(rng, "train")
        _, _, written = example.answer["reasoning_content"].rpartition("so ")
        assert int(written) == example.target.result


def test_a_list_is_counted_item_by_item():
    problem = Count(item="b", items=("a", "b", "b", "c", "b"))
    assert problem.steps == "a0 b1 b2 c2 b3"
    assert problem.result == 3


def test_the_needle_lies_more_than_a_window_before_the_question():
    for example in examples(BY_NAME["needle"], "train", 300):
        text = example.messages[0]["content"]
        between = text[text.index(example.target.digits) :]
        assert len(between.split()) > 32


def edited(example, **changes):
    """The example's only call, its name or arguments changed."""
    call = dict(example.answer["tool_calls"][0]["function"])
    call["arguments"] = json.dumps({**call["arguments"], **changes.pop("arguments", {})})
    return {"content": "", "tool_calls": [{"function": {**call, **changes}}]}


def test_a_call_must_have_the_right_name_and_arguments_and_be_the_only_one():
    task = BY_NAME["tool_call"]
    for example in examples(task, "test", 50):
        right = edited(example)
        assert task.is_right(example, right)
        assert not task.is_right(example, edited(example, name="other"))
        assert not task.is_right(example, edited(example, arguments={"extra": 1}))
        assert not task.is_right(example, {**right, "content": "Here you are."})
        assert not task.is_right(example, {**right, "tool_calls": right["tool_calls"] * 2})
        for name, value in example.target.call.arguments.items():
            wrong = int(value) if isinstance(value, bool) else f"{value} "
            assert not task.is_right(example, edited(example, arguments={name: wrong}))


def test_json_must_have_exact_types():
    task = BY_NAME["json"]
    for example in examples(task, "test", 50):
        for name, value in example.target.wanted.items():
            wrong = int(value) if isinstance(value, bool) else [value]
            answer = {"content": json.dumps({**example.target.wanted, name: wrong})}
            assert not task.is_right(example, answer)


def test_a_tool_result_is_told_with_its_subject_and_no_other_number():
    task = BY_NAME["tool_result"]
    for example in examples(task, "test", 50):
        subject, value = example.target.subject, example.target.value
        assert task.is_right(example, {"content": f"For {subject} it is {value}."})
        assert not task.is_right(example, {"content": f"It is {value}."})
        assert not task.is_right(example, {"content": f"For {subject} it is {value} or 7."})
        assert not task.is_right(example, {"content": f"For {subject} it is -{value}."})
        assert not task.is_right(example, {"content": f"For {subject}. It is {value}."})
