"""How often the demo model is right, task by task, on this device, with each choice of kernels.

Greedy, held-out examples of all tasks, media as arrays, through `LLM.chat`. The questions are the
same everywhere, and fewer items are the first ones of more: runs on a CPU and a GPU can be compared
task by task, and `questions` in their lines says that they may be. A device or a kernel that is a
point below is wrong. With several choices of kernels answers that differ are counted too, token for
token.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any, get_args

import numpy as np
import torch

from mimo_engine.bench.record import append_result
from mimo_engine.config.engine import CacheConfig, KernelChoice
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.demo.evaluate import answer_of
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.task import Example, Task, task_name
from mimo_engine.llm import LLM, Output
from mimo_engine.utils.hub import DEMO

__all__ = ["alike", "chat", "main", "questions_id"]

_PARAMS = SamplingParams(temperature=0.0, max_tokens=512)


def alike(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of examples, those together that one call of `LLM.chat` takes."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(examples):
        groups.setdefault(repr((example.tools, example.thinks)), []).append(index)
    return list(groups.values())


def chat(engine: LLM, examples: Sequence[Example], params: SamplingParams) -> list[Output]:
    """Answers to examples that are `alike`."""
    return engine.chat(
        [example.messages for example in examples],
        params,
        tools=examples[0].tools or None,
        chat_template_kwargs={"enable_thinking": examples[0].thinks},
    )


def _answers(engine: LLM, examples: Sequence[Example]) -> list[list[int]]:
    """Token ids of each answer, without the stop token."""
    answers: list[list[int]] = [[] for _ in examples]
    for group in alike(examples):
        for index, output in zip(
            group, chat(engine, [examples[i] for i in group], _PARAMS), strict=True
        ):
            is_ended = isinstance(output.stop_reason, int) or output.finish_reason == "stop"
            answers[index] = output.token_ids[:-1] if is_ended else output.token_ids
    return answers


def _num_right(task: Task, examples: Sequence[Example], answers: list[list[int]], llm: LLM) -> int:
    messages = [
        answer_of(tokens, example, llm.tokenizer)
        for tokens, example in zip(answers, examples, strict=True)
    ]
    return sum(map(task.is_right, examples, messages))


def _name(device: str) -> str:
    return "cpu" if device == "cpu" else torch.cuda.get_device_name(device)


def questions_id(examples: Sequence[Example]) -> str:
    """The same for the same questions, media included."""
    found = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, np.ndarray):
            found.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        elif isinstance(value, Mapping):
            add([part for item in sorted(value.items()) for part in item])
        elif isinstance(value, (list, tuple)):
            found.update(f"{len(value)} of".encode())
            for part in value:
                add(part)
        else:
            found.update(f"{value!r};".encode())

    for example in examples:
        add((example.messages, example.tools, example.thinks))
    return found.hexdigest()[:12]


def _measure(engines: Mapping[str, LLM], task: Task, num_items: int) -> dict[str, Any]:
    """How many answers are right, and how many are not those of the first engine."""
    rng = random.Random(f"answers {task_name(task)}")
    examples = [task.make(rng, "test") for _ in range(num_items)]
    started = perf_counter()
    answers = {kind: _answers(engine, examples) for kind, engine in engines.items()}
    first = next(iter(answers.values()))
    return {
        "task": task_name(task),
        "questions": questions_id(examples),
        "right": {
            kind: _num_right(task, examples, own, engines[kind]) for kind, own in answers.items()
        },
        "differ": {kind: sum(map(list.__ne__, own, first)) for kind, own in answers.items()},
        "s": round(perf_counter() - started, 1),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append a JSON line for each task as it is done, and one for all."""
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.bench.answers")
    parser.add_argument("--items", type=int, default=100, help="of a task")
    parser.add_argument("--limit-s", type=float, help="after which no task is begun")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--kernels",
        action="append",
        choices=get_args(KernelChoice),
        help="one or more (default: auto); the first one's answers are what others are compared "
        "with",
    )
    options = parser.parse_args(arguments)
    kinds: Sequence[KernelChoice] = options.kernels or ("auto",)
    started = perf_counter()
    engines: dict[str, LLM] = {
        kind: LLM(DEMO, device=options.device, kernels=kind, cache=CacheConfig(kv_cache_gib=0.5))
        for kind in kinds
    }
    head: dict[str, Any] = {
        "device": _name(options.device),
        "config": {"model": DEMO, "items": options.items},
    }
    print(f"{'right of ' + str(options.items):<24}" + "".join(f"{kind:>12}" for kind in kinds))
    found: list[dict[str, Any]] = []
    tasks = demo_tasks()
    for task in tasks:
        if found and options.limit_s and perf_counter() - started > options.limit_s:
            print(f"the time is up: {len(tasks) - len(found)} tasks are left")
            break
        found.append(_measure(engines, task, options.items))
        append_result("answers", {**head, **found[-1]})
        right = found[-1]["right"]
        print(
            f"{task_name(task):<24}" + "".join(f"{right[kind]:>12}" for kind in kinds), flush=True
        )
    total = options.items * len(found)
    accuracy = {kind: sum(one["right"][kind] for one in found) / total for kind in kinds}
    differ = {kind: sum(one["differ"][kind] for one in found) for kind in kinds}
    print(f"{'all':<24}" + "".join(f"{accuracy[kind]:>12.4f}" for kind in kinds))
    if len(kinds) > 1:
        print(f"{'answers that differ':<24}" + "".join(f"{differ[kind]:>12}" for kind in kinds))
    names = [one["task"] for one in found]
    append_result("answers", {**head, "tasks": names, "accuracy": accuracy, "differ": differ})
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
