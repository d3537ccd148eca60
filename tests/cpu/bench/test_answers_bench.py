"""Answers of the demo model are counted task by task, and the questions are the same everywhere."""

import json
import random

import pytest

from mimo_engine.bench import answers
from mimo_engine.demo.suite import demo_tasks


def test_questions_are_known_by_all_that_is_in_them():
    task = demo_tasks()[0]
    one, same, other = (
        [task.make(random.Random(seed), "test") for _ in range(3)] for seed in (1, 1, 2)
    )
    assert answers.questions_id(one) == answers.questions_id(same)
    assert answers.questions_id(one) != answers.questions_id(other)
    assert answers.questions_id(one) != answers.questions_id(one[:2])


def test_each_task_is_a_line_and_a_limit_ends_between_tasks(tmp_path, monkeypatch, capsys):
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    answers.main(["--items", "1", "--device", "cpu", "--limit-s", "0.001"])
    text = (tmp_path / "benchmarks" / "results" / "answers.jsonl").read_text()
    first, total = [json.loads(line) for line in text.splitlines()]
    assert set(first["right"]) == {"auto"}
    assert total["tasks"] == [first["task"]]
    assert total["accuracy"] == pytest.approx({"auto": first["right"]["auto"]})
    assert "tasks are left" in capsys.readouterr().out
