"""How often the demo model is right, task by task, on this device, with each choice of kernels.

Greedy, held-out examples of all tasks, media as arrays, through `LLM.chat`. What a CPU scores over
HTTP stands in docs/demo.md: a device or a kernel that is a point below is wrong. Also counted are
answers that are not those of the reference operators, token for token.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from typing import get_args

import torch

from mimo_engine.bench.record import append_result
from mimo_engine.config.engine import CacheConfig, KernelChoice
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.demo.evaluate import answer_of
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.task import Example, Task, task_name
from mimo_engine.llm import LLM, Output
from mimo_engine.utils.hub import DEMO

__all__ = ["alike", "chat", "main"]

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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.bench.answers")
    parser.add_argument("--items", type=int, default=100, help="of a task")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--kernels",
        action="append",
        choices=get_args(KernelChoice),
        help="one or more; the answers of the first are what the others are compared with",
    )
    options = parser.parse_args(arguments)
    both: tuple[KernelChoice, ...] = ("reference", "triton")
    kinds: Sequence[KernelChoice] = options.kernels or both[: 1 + (options.device != "cpu")]
    engines = {
        kind: LLM(DEMO, device=options.device, kernels=kind, cache=CacheConfig(kv_cache_gib=0.5))
        for kind in kinds
    }
    print(f"{'right of ' + str(options.items):<24}" + "".join(f"{kind:>12}" for kind in kinds))
    right: dict[str, dict[str, int]] = {}
    differ = dict.fromkeys(kinds, 0)
    for task in demo_tasks():
        name = task_name(task)
        rng = random.Random(f"answers {name}")
        examples = [task.make(rng, "test") for _ in range(options.items)]
        answers = {kind: _answers(engine, examples) for kind, engine in engines.items()}
        right[name] = {
            kind: _num_right(task, examples, answers[kind], engines[kind]) for kind in kinds
        }
        for kind in kinds:
            differ[kind] += sum(map(list.__ne__, answers[kind], answers[kinds[0]]))
        print(f"{name:<24}" + "".join(f"{right[name][kind]:>12}" for kind in kinds), flush=True)
    total = options.items * len(right)
    accuracy = {kind: sum(one[kind] for one in right.values()) / total for kind in kinds}
    print(f"{'all':<24}" + "".join(f"{accuracy[kind]:>12.4f}" for kind in kinds))
    print(f"{'answers that differ':<24}" + "".join(f"{differ[kind]:>12}" for kind in kinds))
    append_result(
        "answers",
        {
            "device": _name(options.device),
            "config": {"model": DEMO, "items": options.items},
            "accuracy": accuracy,
            "num_differ": differ,
            "right": right,
        },
    )
    for engine in engines.values():
        engine.close()


if __name__ == "__main__":
    main()
