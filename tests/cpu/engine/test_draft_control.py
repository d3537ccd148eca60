"""What /metrics tells of drafts is counted: what was tested, and what came out."""

import pytest

from mimo_engine.cache.pages import PageRun
from mimo_engine.config.engine import SpeculativeConfig
from mimo_engine.engine.drafts import DraftControl
from mimo_engine.scheduler.plan import RowResult, StepPlan, StepResult, StepRow

NO_PAGES = PageRun(0, ())


def verify(control, *rows, depth=3):
    """rows: (number of drafts, tokens that came, of these in the output)."""
    plan = StepPlan(
        admissions=(),
        rows=tuple(
            StepRow(
                slot=slot,
                start=9,
                num_tokens=1,
                samples=True,
                full=NO_PAGES,
                sliding=NO_PAGES,
                num_drafts=num_drafts,
                num_proposals=depth,
            )
            for slot, (num_drafts, _, _) in enumerate(rows)
        ),
    )
    results = tuple(RowResult(token_ids=(1,) * num_tokens) for _, num_tokens, _ in rows)
    num_kept = [kept for _, _, kept in rows]
    control.saw(plan, StepResult(rows=results), num_kept, depth, 0.01)


def counts(control):
    stats = control.stats()
    return (stats.num_verifications, stats.num_drafted, stats.num_accepted), (
        stats.num_tested,
        stats.num_right,
    )


@pytest.fixture(params=["auto", "mtp"])
def control(request):
    return DraftControl(SpeculativeConfig(speculative=request.param), 3)


def test_a_draft_is_tested_when_those_before_it_were_right(control):
    assert counts(control) == ((0, 0, 0), ([0, 0, 0], [0, 0, 0]))
    verify(control, (3, 4, 4), (3, 1, 1), (2, 2, 2), (0, 1, 1))
    assert counts(control) == ((3, 8, 4), ([3, 2, 1], [2, 1, 1]))


def test_drafts_behind_the_end_of_an_output_do_not_count(control):
    verify(control, (3, 4, 2), (3, 3, 2), (3, 1, 1), (3, 4, 0))
    assert counts(control) == ((3, 7, 4), ([3, 2, 0], [2, 2, 0]))


def test_what_a_probe_forgets_stays_counted():
    control = DraftControl(SpeculativeConfig(), 3)
    for _ in range(500):
        depth = control.choose(1)
        verify(control, (depth, 1, 1), depth=depth)
    stats = control.stats()
    assert stats.num_right == [0, 0, 0]
    assert stats.num_tested[0] == stats.num_verifications
    assert stats.num_tested[1:] == [0, 0]


@pytest.mark.parametrize(("speculative", "is_known"), [("auto", True), ("mtp", False)])
def test_where_the_depth_is_fixed_no_gain_is_told(speculative, is_known):
    control = DraftControl(SpeculativeConfig(speculative=speculative), 3)
    control.choose(1)
    verify(control, (3, 4, 4))
    assert (control.stats().gain is not None) == is_known
