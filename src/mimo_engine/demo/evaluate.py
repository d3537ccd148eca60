"""Answers of the trained modules to held-out examples, and which of them are right.

Greedy, without a cache: every step runs the whole sequences again, those of one task side by side.
That is quick enough for short answers and needs nothing but the forward that was trained. The
engine's own verdict, through its server, is `mimo_engine.eval`'s.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mimo_engine.chat.events import (
    Content,
    Event,
    Reasoning,
    ToolCallDelta,
    ToolCallStart,
    merge_events,
)
from mimo_engine.chat.stream_parser import StreamParser
from mimo_engine.chat.tokenizer import STOP_NAMES, Tokenizer
from mimo_engine.chat.tools import tool_schemas
from mimo_engine.demo.batches import collate, padded_len
from mimo_engine.demo.encoding import Encoded, ExampleEncoder
from mimo_engine.demo.network import DemoNetwork, autocast
from mimo_engine.demo.task import Example, Message, Task

__all__ = ["TaskScore", "answer_of", "evaluate", "greedy_tokens", "score_table"]

_MAX_ANSWER_LEN = 96


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskScore:
    """Of one task, on held-out examples."""

    name: str
    modality: str
    num_items: int
    num_right: int
    baseline: float

    @property
    def accuracy(self) -> float:
        return self.num_right / self.num_items


def evaluate(
    network: DemoNetwork,
    tasks: Sequence[Task],
    encoder: ExampleEncoder,
    tokenizer: Tokenizer,
    *,
    device: torch.device,
    items_per_task: int,
    seed: int = 0,
) -> list[TaskScore]:
    """One score a task. The network is left in evaluation mode."""
    network.eval()
    scores = []
    for task in tasks:
        rng = random.Random(f"test {seed} {task.name} {task.modality}")
        examples = [task.make(rng, "test") for _ in range(items_per_task)]
        encoded = [encoder.encode(example) for example in examples]
        outputs = greedy_tokens(network, encoded, tokenizer, device)
        right = [
            task.is_right(example, answer_of(tokens, example, tokenizer))
            for example, tokens in zip(examples, outputs, strict=True)
        ]
        scores.append(
            TaskScore(
                name=task.name,
                modality=task.modality,
                num_items=len(right),
                num_right=sum(right),
                baseline=task.baseline,
            )
        )
    return scores


@torch.no_grad()
def greedy_tokens(
    network: DemoNetwork, examples: Sequence[Encoded], tokenizer: Tokenizer, device: torch.device
) -> list[list[int]]:
    """What follows each prompt, without the stop token that ends it."""
    stops = {tokenizer.id_of(name) for name in STOP_NAMES}
    outputs: list[list[int]] = [[] for _ in examples]
    running = list(range(len(examples)))
    for _ in range(_MAX_ANSWER_LEN):
        if not running:
            break
        chosen = _next_tokens(
            network, [_grown(examples[i], outputs[i]) for i in running], tokenizer, device
        )
        still = []
        for index, token in zip(running, chosen, strict=True):
            if token not in stops:
                outputs[index].append(token)
                still.append(index)
        running = still
    return outputs


def answer_of(tokens: Sequence[int], example: Example, tokenizer: Tokenizer) -> Message:
    """The assistant's turn that the server would make of an output."""
    schemas = tool_schemas(example.tools)
    parser = StreamParser(thinking="maybe" if example.thinks else "off", tools=schemas)
    events = merge_events([*parser.push(tokenizer.decode(tokens)), *parser.finish()])
    calls: list[dict[str, Any]] = []
    for event in events:
        if isinstance(event, ToolCallStart):
            function = {"name": event.name, "arguments": ""}
            calls.append({"id": f"call_{event.index}", "type": "function", "function": function})
        elif isinstance(event, ToolCallDelta):
            calls[event.index]["function"]["arguments"] += event.arguments
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": _text(events, Content),
        "reasoning_content": _text(events, Reasoning),
    }
    return answer | {"tool_calls": calls} if calls else answer


def score_table(scores: Sequence[TaskScore]) -> str:
    """A line a task."""
    lines = [f"{'task':<16} {'modality':<9} {'right':>9} {'accuracy':>9} {'baseline':>9}"]
    for score in scores:
        right = f"{score.num_right}/{score.num_items}"
        lines.append(
            f"{score.name:<16} {score.modality:<9} {right:>9} {score.accuracy:>9.1%} "
            f"{score.baseline:>9.1%}"
        )
    return "\n".join(lines)


def _text(events: Sequence[Event], kind: type[Content | Reasoning]) -> str:
    return "".join(event.text for event in events if isinstance(event, kind))


def _grown(example: Encoded, output: Sequence[int]) -> Encoded:
    """The prompt and what has been said so far."""
    prompt = example.token_ids[: example.prompt_len]
    token_ids = np.concatenate([prompt, np.array(output, np.int64)])
    return replace(example, token_ids=token_ids, weights=np.ones(len(token_ids), np.float32))


def _next_tokens(
    network: DemoNetwork, examples: Sequence[Encoded], tokenizer: Tokenizer, device: torch.device
) -> list[int]:
    """The likeliest token after each sequence, of those that the tokenizer has."""
    batch = collate(examples, [0] * len(examples), pad_id=0).to(device)
    with autocast(device):
        hidden = network(batch)
        last = torch.zeros(len(examples), dtype=torch.int64)
        start = 0
        # As `collate` orders them.
        for index in sorted(
            range(len(examples)), key=lambda i: padded_len(len(examples[i].token_ids))
        ):
            length = len(examples[index].token_ids)
            last[index] = start + length - 1
            start += padded_len(length)
        logits = network.text.logits(hidden.states[last.to(device)])
    return logits[:, : tokenizer.num_tokens].argmax(dim=-1).tolist()
