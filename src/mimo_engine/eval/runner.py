"""Puts the questions of an evaluation, several at a time, and grades what comes back.

What must hold: every item has exactly one outcome, in the items' order, whatever fails. A failure
scores as a wrong answer, and of a clip as all its words missing. So a server gains no accuracy by
refusing what is hard. In the word error rate it can gain, since a transcript may have more errors
than the reference has words: the report counts failures.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from mimo_engine.errors import MimoError
from mimo_engine.eval.api import Failure, Reply, Request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Metric

__all__ = ["Ask", "Outcome", "run_evaluation"]

Ask = Callable[[Request], Awaitable[Reply | Failure]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """An item that is done."""

    item: Item
    grade: Grade
    expected: Any = None
    reply: Reply | None = None
    error: str | None = None
    """Why there is no reply."""
    latency_s: float = 0.0
    """Of the request, waiting for a 503 to pass included."""


async def run_evaluation(
    evaluation: Evaluation,
    ask: Ask,
    *,
    concurrency: int,
    on_outcome: Callable[[Outcome], None] = lambda _: None,
) -> list[Outcome]:
    """Outcomes in the items' order; on_outcome is called in the order in which they come."""
    outcomes: list[Outcome | None] = [None] * len(evaluation.items)
    pending = iter(enumerate(evaluation.items))

    async def work() -> None:
        for index, item in pending:
            outcome = await _run_item(item, ask, evaluation.metric)
            outcomes[index] = outcome
            on_outcome(outcome)

    async with asyncio.TaskGroup() as workers:
        for _ in range(min(concurrency, len(evaluation.items))):
            workers.create_task(work())
    assert None not in outcomes
    return [outcome for outcome in outcomes if outcome is not None]


async def _run_item(item: Item, ask: Ask, metric: Metric) -> Outcome:
    worst = Grade(count=0 if metric == "accuracy" else item.total, note="failed")
    try:
        # Encoding media takes a while, in which other answers can be taken.
        question = await asyncio.to_thread(item.pose)
    except MimoError as error:
        return Outcome(item=item, grade=worst, error=str(error))
    begin_s = time.perf_counter()
    reply = await ask(question.request)
    latency_s = time.perf_counter() - begin_s
    if isinstance(reply, Failure):
        return Outcome(
            item=item,
            grade=worst,
            expected=question.expected,
            error=reply.reason,
            latency_s=latency_s,
        )
    # On a thread too: the word errors of an hour of speech take seconds.
    grade = await asyncio.to_thread(question.grade, reply)
    return Outcome(
        item=item, grade=grade, expected=question.expected, reply=reply, latency_s=latency_s
    )
