"""The step after the one in flight, before its result is known.

It is for requests that decode and surely go on doing so, each with as many drafts as the step in
flight makes for it. Then all that is not known is how many tokens that step brings, and the workers
know it before the scheduler does.
"""

from __future__ import annotations

from collections.abc import Sequence

from mimo_engine.cache.manager import CacheManager
from mimo_engine.scheduler.plan import StepPlan, StepRow
from mimo_engine.scheduler.request import Request

__all__ = ["plan_after"]


def plan_after(plan: StepPlan, requests: Sequence[Request], cache: CacheManager) -> StepPlan | None:
    """What follows `plan`, which is in flight, for the requests of its rows; None where it cannot
    be foreseen, or pages are short.

    `start` of a row is the first position that it may have, and pages reach as far as any outcome
    can.
    """
    pairs = list(zip(requests, plan.rows, strict=True))
    if not pairs or not all(_is_foreseen(*pair) for pair in pairs):
        return None
    for request, row in pairs:
        assert request.pages is not None
        # From the row's start: what it and the next one may compute.
        if not cache.extend(request.pages, row.num_rows + 1 + row.num_proposals):
            return None
    rows = [_next_row(request, row, cache) for request, row in pairs]
    return StepPlan(admissions=(), rows=tuple(rows), is_ahead=True)


def _is_foreseen(request: Request, row: StepRow) -> bool:
    """Whether the request decodes in `row`, and surely goes on for another such step unless a stop
    ends it."""
    most = row.num_rows + 1 + row.num_proposals
    return (
        row.samples
        and row.num_tokens == 1
        and not request.is_aborted
        and request.params.is_plain
        and request.num_left > most
    )


def _next_row(request: Request, before: StepRow, cache: CacheManager) -> StepRow:
    assert request.pages is not None
    full, sliding = cache.take_new_pages(request.pages)
    return StepRow(
        slot=before.slot,
        start=before.start + 1,
        num_tokens=1,
        samples=True,
        full=full,
        sliding=sliding,
        num_drafts=before.num_proposals,
        num_proposals=before.num_proposals,
    )
