"""Random traces with drafts: the text is what it is without them, no request sees draft rows of
another's continuation, and none pays for the drafts of another."""

from __future__ import annotations

import copy
import random
from dataclasses import replace

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from simulated_worker import Luck, Setup, Worker
from test_groups import small_config
from traffic import CROWDED, Driver, Trace, check_outputs, drive, random_operations, setups

from mimo_engine.cache.groups import plan_cache
from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.cache.prefix import PageChain, PrefixMatch
from mimo_engine.errors import ConfigError
from mimo_engine.scheduler.plan import StepPlan

ROUGH = Luck(fewer_verified=0.1, late=0.08, broken=0.005)
CROWDED_DRAFTS = replace(
    CROWDED, num_sliding_pages=18, window=10, num_draft_layers=3, max_num_batched_tokens=30
)


def traffic(seed: int, num_operations: int) -> list:
    return random_operations(
        random.Random(seed), num_operations, share_of_turns=0.5, share_of_losses=0.2
    )


def prove_trace(setup: Setup, seed: int, num_operations: int) -> Trace:
    trace = drive(setup, traffic(seed, num_operations), luck=ROUGH, seed=seed)
    check_outputs(trace, setup)
    return trace


@settings(max_examples=80, deadline=None, derandomize=True)
@given(setups(with_drafts=True), st.integers(0, 2**32))
def test_drafts_change_no_text_and_see_no_row_of_another_continuation(setup, seed):
    prove_trace(setup, seed, 60)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(setups(with_drafts=True), st.integers(0, 2**32))
def test_the_same_calls_give_the_same_plans(setup, seed):
    assert prove_trace(setup, seed, 60).plans == prove_trace(setup, seed, 60).plans


@settings(max_examples=20, deadline=None, derandomize=True)
@given(setups(with_drafts=True), st.integers(0, 2**32))
def test_guessed_rows_that_are_kept_are_all_that_is_inexact(setup, seed):
    prove_trace(replace(setup, recompute_boundary=False), seed, 60)


@pytest.mark.prove
@pytest.mark.timeout(3 * 3600)
@settings(max_examples=5000, deadline=None)
@given(setups(with_drafts=True), st.integers(0, 2**32), st.booleans())
def test_drafts_change_no_text_at_full_size(setup, seed, recompute_boundary):
    prove_trace(replace(setup, recompute_boundary=recompute_boundary), seed, 300)


def test_a_crowded_cache_meets_all_that_can_befall_drafts():
    driver = Driver(CROWDED_DRAFTS, luck=ROUGH, seed=0)
    trace = driver.run(traffic(0, 800))
    check_outputs(trace, CROWDED_DRAFTS)
    worker, rows = driver.worker, driver.worker.draft_rows
    assert worker.num_drafts > 500
    assert 0.4 < worker.num_accepted / worker.num_drafts < 0.9
    assert len(trace.aborted) > 10
    assert len(trace.lost) > 10
    assert trace.num_preemptions >= 1
    assert trace.num_stops_in_drafts > 5
    assert trace.num_hit_tokens > 500
    # Draft rows that came with a hit are seen, and nearly all of a window is.
    assert rows.num_seen_of_others > 50
    assert rows.num_hidden < 0.1 * rows.num_seen


class Compared(Driver):
    """Looks, before each step, at what the same scheduler would plan without drafts."""

    def plan(self, depth: int) -> StepPlan | None:
        without = copy.deepcopy(self.scheduler).plan(0)
        plan = super().plan(depth)
        assert (plan is None) == (without is None)
        if plan is not None and without is not None:
            self.compare(plan, without)
        return plan

    def compare(self, plan: StepPlan, without: StepPlan) -> None:
        rows = {row.slot: row for row in plan.rows}
        admitted = {admission.slot for admission in without.admissions}
        for row in without.rows:
            if row.slot not in admitted:
                assert row.slot in rows, "preempted for the drafts of another"
                assert rows[row.slot].start == row.start
                assert row.num_tokens > 1 or rows[row.slot].num_tokens == 1


class ComparesAdmissions(Compared):
    def compare(self, plan: StepPlan, without: StepPlan) -> None:
        # A prompt that has begun comes before the queue, and may have less of the budget.
        if without.admissions and all(row.samples for row in plan.rows):
            assert plan.admissions, "the head of the queue waits for drafts"


def compare(driver_class: type[Compared], setup: Setup, seed: int) -> None:
    driver = driver_class(setup, luck=ROUGH, seed=seed)
    check_outputs(driver.run(traffic(seed, 60)), setup)


# No shrinking: the examples of test_drafts.py are smaller than what it finds.
@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(setups(with_drafts=True), st.integers(0, 2**32))
def test_no_running_request_loses_its_token_to_drafts(setup, seed):
    compare(Compared, setup, seed)


@settings(max_examples=25, deadline=None, derandomize=True, phases=[Phase.generate])
@given(setups(with_drafts=True), st.integers(0, 2**32))
def test_no_waiting_request_waits_for_drafts(setup, seed):
    compare(ComparesAdmissions, setup, seed)


def smallest_setup(window: int, page_size: int, max_model_len: int, num_layers: int) -> Setup:
    """With the pages of the least bytes that `plan_cache` takes."""
    limits = {
        "max_num_seqs": 4,
        "max_num_batched_tokens": num_layers + 8,
        "max_model_len": max_model_len,
    }
    refused, layout = 0, None
    taken = 2**30
    while taken - refused > 1:
        middle = (refused + taken) // 2
        try:
            layout = plan_cache(
                small_config([0, 1], window),
                middle,
                page_size=page_size,
                bytes_per_element=2,
                num_draft_layers=num_layers,
                **limits,
            )
            taken = middle
        except ConfigError:
            refused = middle
    assert layout is not None
    return Setup(
        page_size=page_size,
        num_full_pages=layout.num_full_pages,
        num_sliding_pages=layout.num_sliding_pages,
        window=window,
        prefix_caching=True,
        num_draft_layers=num_layers,
        **limits,
    )


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    st.integers(1, 20),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(8, 60),
    st.integers(1, 5),
    st.integers(0, 2**32),
)
def test_the_smallest_cache_holds_one_request_with_all_its_drafts(
    window, page_size, max_model_len, num_layers, seed
):
    setup = smallest_setup(window, page_size, max_model_len, num_layers)
    rng = random.Random(seed)
    driver = Driver(setup, seed=seed, depth=num_layers)
    for _ in range(2):
        prompt = [rng.randrange(3) for _ in range(rng.randrange(1, max_model_len))]
        driver.add(prompt, {"max_tokens": None, "ignore_eos": True})
        slot_drafts = 0
        while driver.scheduler.has_work:
            num_known = len(driver.worker.slots[0].token_ids) if slot_drafts else 0
            plan = driver.step()
            assert plan is not None
            (row,) = plan.rows
            assert row.num_drafts == max(0, min(slot_drafts, max_model_len - num_known - 1))
            slot_drafts = row.num_proposals
    check_outputs(driver.trace, setup)
    assert driver.trace.num_preemptions == 0


class RecomputesOneRowTooFew(CacheManager):
    def set_drafted(self, pages: SequencePages, *arguments, is_kept: bool) -> None:
        super().set_drafted(pages, *arguments, is_kept=is_kept)
        pages.drafted_to = min(pages.drafted_to + 1, pages.num_computed)


class GoesOnAfterAPause(CacheManager):
    def draft_start(
        self, pages: SequencePages, num_computed: int, num_layers: int
    ) -> tuple[int, int]:
        return super().draft_start(pages, num_computed, min(num_layers, pages.num_draft_layers))


class SeesTheWholeWindow(CacheManager):
    def draft_start(self, *arguments) -> tuple[int, int]:
        return super().draft_start(*arguments)[0], 0


class ComputesRowsThatOthersComputed(CacheManager):
    def draft_start(
        self, pages: SequencePages, num_computed: int, num_layers: int
    ) -> tuple[int, int]:
        num_cached, pages.num_cached = pages.num_cached, 0
        start = super().draft_start(pages, num_computed, num_layers)
        pages.num_cached = num_cached
        return start


class TrustsDraftRowsOfAnyContinuation(CacheManager):
    def find(self, chain: PageChain) -> PrefixMatch:
        match = super().find(chain)
        drafted_from = len(match.entries)
        while drafted_from > match.first_sliding and match.entries[drafted_from - 1].drafted:
            drafted_from -= 1
        return replace(match, drafted_from=drafted_from, num_draft_layers=1)


class SharesSlidingPagesThatAreStillWritten(CacheManager):
    def __init__(self, *arguments, has_drafts: bool) -> None:
        super().__init__(*arguments, has_drafts=False)


class ForgetsThatRowsWereEvicted(CacheManager):
    def extend(self, pages: SequencePages, num_tokens: int) -> bool:
        before = {entry: entry.drafted for entry in self._prefix.entries()}
        extended = super().extend(pages, num_tokens)
        for entry, drafted in before.items():
            entry.drafted = drafted
        return extended


def drive_some(cache_class: type[CacheManager]) -> None:
    for seed in range(8):
        drive(CROWDED_DRAFTS, traffic(seed, 600), cache_class=cache_class, seed=seed)


@pytest.mark.parametrize(
    "cache_class",
    [
        RecomputesOneRowTooFew,
        GoesOnAfterAPause,
        SeesTheWholeWindow,
        ComputesRowsThatOthersComputed,
        TrustsDraftRowsOfAnyContinuation,
        SharesSlidingPagesThatAreStillWritten,
        ForgetsThatRowsWereEvicted,
    ],
)
def test_a_seeded_bug_is_caught(cache_class):
    with pytest.raises((AssertionError, KeyError)):
        drive_some(cache_class)


class KeepsTooFewHiddenStates(Worker):
    def __init__(self, setup: Setup, **options) -> None:
        super().__init__(setup, **options)
        self.ring_len = setup.window or 1


def test_a_ring_of_hidden_states_that_is_too_short_is_caught():
    with pytest.raises(AssertionError, match="of other tokens before it"):
        drive(CROWDED_DRAFTS, traffic(0, 600), worker_class=KeepsTooFewHiddenStates)
