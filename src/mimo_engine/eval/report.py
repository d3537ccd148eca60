"""What an evaluation found: a line for each group, and all of it as JSON."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mimo_engine.eval.evaluation import Evaluation, Metric
from mimo_engine.eval.intervals import Interval, rate_interval, wilson_interval
from mimo_engine.eval.runner import Outcome

__all__ = ["ALL", "Summary", "as_json", "summarise", "table"]

ALL = "all"
"""The line over all groups."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One line of the table."""

    group: str
    num_items: int
    num_failed: int
    """Requests without an answer; they score as wrong."""
    num_cut: int
    """Answers that max_tokens ended."""
    score: float
    interval: Interval | None
    """95 %. None: the items do not tell, as one alone, or rates that are all the same."""
    baseline: float | None
    notes: Mapping[str, int]
    """How answers were read, or what is wrong with them, and how often."""


def summarise(evaluation: Evaluation, outcomes: Sequence[Outcome]) -> list[Summary]:
    """A line for each group, in the order of the items, and one for all where there are several."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome.item.group, []).append(outcome)
    if len(groups) > 1:
        groups[ALL] = list(outcomes)
    return [
        _summary(group, own, evaluation.metric, evaluation.baselines.get(group))
        for group, own in groups.items()
    ]


def table(summaries: Sequence[Summary], metric: Metric) -> str:
    """For the terminal."""
    width = max(len("group"), *(len(one.group) for one in summaries))
    head = (
        f"{'group':<{width}}{'items':>7}{'failed':>8}{'cut':>6}  {metric:<17}{'95 %':<17}baseline"
    )
    lines = [
        f"{one.group:<{width}}{one.num_items:>7}{one.num_failed:>8}{one.num_cut:>6}  "
        f"{one.score:<17.4f}{_shown(one.interval):<17}"
        f"{'-' if one.baseline is None else format(one.baseline, '.4f')}"
        for one in summaries
    ]
    return "\n".join([head, *lines])


def as_json(
    about: Mapping[str, Any],
    evaluation: Evaluation,
    summaries: Sequence[Summary],
    outcomes: Sequence[Outcome],
) -> dict[str, Any]:
    """Everything, item by item. about: what was asked of whom; it stands first."""
    return {
        **about,
        "metric": evaluation.metric,
        "settings": dict(evaluation.settings),
        "groups": [
            {**asdict(one), "definition": evaluation.definitions.get(one.group)}
            for one in summaries
        ],
        "items": [_record(outcome) for outcome in outcomes],
    }


def _summary(
    group: str, outcomes: Sequence[Outcome], metric: Metric, baseline: float | None
) -> Summary:
    counts = [outcome.grade.count for outcome in outcomes]
    totals = [outcome.item.total for outcome in outcomes]
    if metric == "accuracy":
        interval = wilson_interval(sum(counts), len(counts))
    else:
        interval = rate_interval(counts, totals)
    notes = Counter(outcome.grade.note for outcome in outcomes if outcome.grade.note)
    return Summary(
        group=group,
        num_items=len(outcomes),
        num_failed=sum(outcome.error is not None for outcome in outcomes),
        num_cut=sum(outcome.reply is not None and outcome.reply.is_cut for outcome in outcomes),
        score=sum(counts) / sum(totals),
        interval=interval,
        baseline=baseline,
        notes=dict(notes.most_common()),
    )


def _record(outcome: Outcome) -> dict[str, Any]:
    reply = outcome.reply
    return {
        "id": outcome.item.id,
        "group": outcome.item.group,
        "count": outcome.grade.count,
        "total": outcome.item.total,
        "expected": outcome.expected,
        "answer": outcome.grade.answer,
        "note": outcome.grade.note,
        "error": outcome.error,
        "finish_reason": reply and reply.finish_reason,
        "prompt_tokens": reply and reply.num_prompt_tokens,
        "completion_tokens": reply and reply.num_completion_tokens,
        "latency_s": round(outcome.latency_s, 3),
        "message": reply and dict(reply.message),
    }


def _shown(interval: Interval | None) -> str:
    return "-" if interval is None else f"{interval[0]:.4f} .. {interval[1]:.4f}"
