"""A run: every item has one outcome in its place, however requests end and in which order."""

import asyncio
import json

import pytest

from mimo_engine.errors import ConfigError
from mimo_engine.eval.api import Failure, Reply, Request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Question
from mimo_engine.eval.report import as_json, summarise, table
from mimo_engine.eval.runner import run_evaluation


def item(index, *, group="g", total=1, pose=None):
    def own_pose():
        return Question(
            request=Request(path="/v1/completions", body={"prompt": index}),
            expected=index,
            grade=lambda reply: Grade(count=int(reply.text), answer=reply.text, note="read"),
        )

    return Item(id=str(index), group=group, pose=pose or own_pose, total=total)


def evaluation(items, metric="accuracy", **parts):
    return Evaluation(metric=metric, items=items, settings={"max_tokens": 9}, **parts)


def said(text, finish_reason="stop"):
    return Reply(message={"content": text}, finish_reason=finish_reason)


def run(asked, answers, *, concurrency=4):
    """answers: by the item's place; what they are told."""
    told = []

    async def ask(request):
        answer = answers[request.body["prompt"]]
        return await answer() if callable(answer) else answer

    outcomes = asyncio.run(
        run_evaluation(asked, ask, concurrency=concurrency, on_outcome=told.append)
    )
    return outcomes, told


def test_outcomes_stand_in_the_items_order_and_are_told_as_they_come():
    gate = asyncio.Event()

    async def late():
        await gate.wait()
        return said("1")

    async def opens():
        gate.set()
        return said("0")

    outcomes, told = run(evaluation([item(0), item(1)]), [late, opens], concurrency=2)
    assert [outcome.grade.count for outcome in outcomes] == [1, 0]
    assert [outcome.item.id for outcome in told] == ["1", "0"]


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_at_most_so_many_requests_run_at_once_and_so_many_do(concurrency):
    running, most = 0, 0

    async def answer():
        nonlocal running, most
        running += 1
        most = max(most, running)
        for _ in range(20):
            await asyncio.sleep(0.001)
        running -= 1
        return said("1")

    outcomes, _ = run(
        evaluation([item(i) for i in range(9)]), [answer] * 9, concurrency=concurrency
    )
    assert len(outcomes) == 9
    assert most == min(concurrency, 9)


def unreadable():
    raise ConfigError("row 3: the picture cannot be read")


def test_requests_that_fail_and_media_that_cannot_be_read_score_as_wrong():
    items = [item(0), item(1), item(2, pose=unreadable)]
    outcomes, told = run(evaluation(items), [said("1"), Failure(reason="HTTP 500: no")])
    assert [outcome.grade.count for outcome in outcomes] == [1, 0, 0]
    errors = [None, "HTTP 500: no", "row 3: the picture cannot be read"]
    assert [outcome.error for outcome in outcomes] == errors
    assert len(told) == 3


def test_a_clip_without_an_answer_has_every_word_wrong():
    asked = evaluation([item(0, total=4), item(1, total=6)], metric="word error rate")
    outcomes, _ = run(asked, [said("1"), Failure(reason="no")])
    assert [outcome.grade.count for outcome in outcomes] == [1, 6]
    (summary,) = summarise(asked, outcomes)
    assert summary.score == 0.7
    assert summary.num_failed == 1


def test_where_the_items_do_not_tell_the_table_has_no_interval():
    asked = evaluation([item(i, total=4) for i in range(3)], metric="word error rate")
    outcomes, _ = run(asked, [said("0")] * 3)
    summaries = summarise(asked, outcomes)
    assert summaries[0].interval is None
    line = table(summaries, asked.metric).splitlines()[1]
    assert line.split() == ["g", "3", "0", "0", "0.0000", "-", "-"]


def test_a_fault_of_our_own_is_no_outcome():
    def broken():
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        run(evaluation([item(0, pose=broken)]), [])


def test_an_evaluation_without_items_is_refused():
    with pytest.raises(ConfigError, match="no item to be asked"):
        evaluation([])


@pytest.fixture
def two_groups():
    items = [item(i, group="one" if i % 2 else "two") for i in range(6)]
    asked = evaluation(items, baselines={"one": 0.25}, definitions={"one": "in words"})
    answers = [
        said("1"),
        said("0", "length"),
        said("1"),
        Failure(reason="no"),
        said("1"),
        said("1"),
    ]
    outcomes, _ = run(asked, answers)
    return asked, outcomes


def test_each_group_has_a_line_and_all_of_them_one_more(two_groups):
    two, one, both = summarise(*two_groups)
    assert (two.group, two.num_items, two.score, two.baseline) == ("two", 3, 1.0, None)
    assert (one.num_failed, one.num_cut, one.baseline) == (1, 1, 0.25)
    assert one.score == pytest.approx(1 / 3)
    assert one.notes == {"read": 2, "failed": 1}
    assert (both.group, both.num_items) == ("all", 6)
    low, high = both.interval
    assert 0 < low < both.score == 4 / 6 < high < 1


def test_the_table_has_a_column_for_each_of_them(two_groups):
    lines = table(summarise(*two_groups), "accuracy").splitlines()
    assert lines[0].split() == [
        "group",
        "items",
        "failed",
        "cut",
        "accuracy",
        "95",
        "%",
        "baseline",
    ]
    assert lines[2].split() == ["one", "3", "1", "1", "0.3333", "0.0615", "..", "0.7923", "0.2500"]


def test_the_report_is_json_with_every_answer(two_groups):
    asked, outcomes = two_groups
    about = {"task": "gsm8k", "model": "m"}
    report = json.loads(json.dumps(as_json(about, asked, summarise(asked, outcomes), outcomes)))
    assert list(report)[:2] == ["task", "model"]
    assert report["metric"] == "accuracy"
    assert report["settings"] == {"max_tokens": 9}
    assert [group["group"] for group in report["groups"]] == ["two", "one", "all"]
    assert report["groups"][1]["definition"] == "in words"
    assert [one["count"] for one in report["items"]] == [1, 0, 1, 0, 1, 1]
    assert report["items"][3]["error"] == "no"
    assert report["items"][3]["message"] is None
    assert report["items"][1]["finish_reason"] == "length"
    assert report["items"][1]["message"] == {"content": "0"}
