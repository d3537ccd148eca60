"""The loop guard over what the demo model writes: no answer of its tasks is taken for a loop."""

import random

import pytest

from mimo_engine.bench.answers import alike, chat
from mimo_engine.chat.loop_guard import LoopGuard
from mimo_engine.config.engine import CacheConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.task import task_name
from mimo_engine.demo.text_tasks import TEXT_TASKS
from mimo_engine.llm import LLM

GREEDY = SamplingParams(temperature=0.0, max_tokens=1024)
SAMPLED = SamplingParams(temperature=1.0, seed=3, max_tokens=1024)


@pytest.fixture(scope="module")
def demo():
    llm = LLM("demo", device="cpu", cache=CacheConfig(kv_cache_gib=0.5))
    yield llm
    llm.close()


def outputs(demo, tasks, num_items, params):
    """(task, token ids) of every answer to held-out examples."""
    for task in tasks:
        rng = random.Random(f"loops {task_name(task)}")
        examples = [task.make(rng, "test") for _ in range(num_items)]
        for group in alike(examples):
            for output in chat(demo, [examples[i] for i in group], params):
                yield task_name(task), output.token_ids


def check(found):
    """No output is a loop, nor are all of them one after another, which are long enough for one."""
    number, together = 0, LoopGuard()
    for name, token_ids in found:
        number += 1
        assert LoopGuard().push(token_ids) is None, name
        assert together.push(token_ids) is None, name
    return number


def test_answers_of_the_demo_are_no_loops(demo):
    assert check(outputs(demo, TEXT_TASKS, 2, GREEDY)) == 2 * len(TEXT_TASKS)


@pytest.mark.prove
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_thousands_of_answers_of_all_tasks_are_no_loops(demo, params):
    tasks = demo_tasks()
    assert check(outputs(demo, tasks, 60, params)) == 60 * len(tasks)
