"""GSM8K, grade-school word problems: 5-shot, as completions and as one user message of a chat.

The public numbers for this family come from this form: the first five items are the shots and are
not asked, shots keep their worked answers, and the last number of an answer counts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import partial
from typing import Any

from mimo_engine.errors import ConfigError
from mimo_engine.eval.api import Reply, Request, chat_request, completion_request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Options, Question
from mimo_engine.eval.rows import Row

__all__ = ["few_shot_prompt", "gsm8k", "gsm8k_chat", "last_number"]

NUM_SHOTS = 5
COMPLETION_TOKENS = 512
CHAT_TOKENS = 2048
STOP = ("Question", "Assistant:", "<|separator|>")
"""Of completions: a base model goes on with a question of its own."""

_NUMBER = re.compile(r"-?\d+\.?\d*")

Ask = Callable[[str], Request]


def gsm8k(options: Options) -> Evaluation:
    """Over /v1/completions: tests the weights."""
    max_tokens = options.tokens_for(COMPLETION_TOKENS)
    ask = partial(completion_request, max_tokens=max_tokens, stop=STOP)
    return _evaluation(options, ask, {"max_tokens": max_tokens, "stop": list(STOP)})


def gsm8k_chat(options: Options) -> Evaluation:
    """Over /v1/chat/completions: tests the template too."""
    max_tokens = options.tokens_for(CHAT_TOKENS)

    def ask(prompt: str) -> Request:
        message = {"role": "user", "content": prompt}
        return chat_request([message], max_tokens=max_tokens, thinks=options.thinks)

    return _evaluation(options, ask, {"max_tokens": max_tokens, "thinking": options.thinks})


def few_shot_prompt(shots: Sequence[tuple[str, str]], question: str) -> str:
    """shots: questions with their worked answers."""
    shown = "".join(f"Question: {q}\nAnswer: {a}\n\n" for q, a in shots)
    return f"{shown}Question: {question}\nAnswer:"


def last_number(text: str) -> Decimal | None:
    """The last number, commas left out; None where there is none."""
    found = _NUMBER.findall(text.replace(",", ""))
    return Decimal(found[-1]) if found else None


def _evaluation(options: Options, ask: Ask, settings: dict[str, Any]) -> Evaluation:
    rows = options.rows(hub_files="main/test-*", columns=("question", "answer"))
    if len(rows) <= NUM_SHOTS:
        raise ConfigError(
            f"GSM8K needs more than {NUM_SHOTS} rows, not {len(rows)}: the first {NUM_SHOTS} are "
            "the examples in every prompt"
        )
    shots = [(row.text("question"), row.text("answer")) for row in rows[:NUM_SHOTS]]
    return Evaluation(
        metric="accuracy",
        items=[
            _item(index, row, shots, ask)
            for index, row in enumerate(rows[NUM_SHOTS:][: options.limit], NUM_SHOTS)
        ],
        settings={"shots": NUM_SHOTS, **settings},
    )


def _item(index: int, row: Row, shots: Sequence[tuple[str, str]], ask: Ask) -> Item:
    question = row.text("question")
    expected = last_number(row.text("answer"))
    if expected is None:
        raise row.error("answer has no number")

    def pose() -> Question:
        return Question(
            request=ask(few_shot_prompt(shots, question)),
            expected=str(expected),
            grade=partial(_grade, expected),
        )

    return Item(id=str(index), group="gsm8k", pose=pose)


def _grade(expected: Decimal, reply: Reply) -> Grade:
    found = last_number(reply.text)
    if found is None:
        return Grade(count=0, note="no number" if reply.text else "empty")
    return Grade(count=int(found == expected), answer=str(found))
