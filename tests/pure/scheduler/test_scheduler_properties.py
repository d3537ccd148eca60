"""Random traces of requests against a worker that is only a memory and a tape of tokens."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worker import Setup
from traffic import CROWDED, Trace, check_outputs, drive, random_operations, setups

from mimo_engine.cache.manager import CacheManager, SequencePages


def prove_trace(setup: Setup, trace_operations: list) -> Trace:
    trace = drive(setup, trace_operations)
    check_outputs(trace, setup)
    again = drive(setup, trace_operations)
    assert again.plans == trace.plans
    return trace


@settings(max_examples=100, deadline=None, derandomize=True)
@given(setups(), st.integers(0, 2**32))
def test_every_trace_gives_the_right_tokens_from_the_right_pages_in_the_same_order(setup, seed):
    prove_trace(setup, random_operations(random.Random(seed), 60))


@pytest.mark.prove
@pytest.mark.timeout(3 * 3600)
@settings(max_examples=5000, deadline=None)
@given(setups(), st.integers(0, 2**32))
def test_every_trace_gives_the_right_tokens_at_full_size(setup, seed):
    prove_trace(setup, random_operations(random.Random(seed), 300))


def test_a_crowded_cache_preempts_hits_and_still_gives_the_right_tokens():
    trace = drive(CROWDED, random_operations(random.Random(0), 600))
    check_outputs(trace, CROWDED)
    assert trace.num_preemptions >= 10
    assert trace.num_hit_tokens > 200
    assert len(trace.aborted) > 5


class SlidesOneTooEarly(CacheManager):
    def _slide(self, pages: SequencePages) -> None:
        pages.num_computed += 1
        super()._slide(pages)
        pages.num_computed -= 1

    def _next_slide(self, pages: SequencePages) -> int:
        return super()._next_slide(pages) - 1


class PublishesBeforeTheStep(CacheManager):
    def extend(self, pages: SequencePages, num_tokens: int) -> bool:
        extended = super().extend(pages, num_tokens)
        if extended:
            num_computed = pages.num_computed
            pages.num_computed = num_computed + num_tokens
            self._publish(pages)
            pages.num_computed = num_computed
        return extended


class ForgetsToSendSwappedPages(CacheManager):
    def _publish(self, pages: SequencePages) -> None:
        num_sent = pages.num_sent
        super()._publish(pages)
        pages.num_sent = num_sent


class LeaksThePagesOfTheDead(CacheManager):
    def free(self, pages: SequencePages) -> None:
        page = pages.full.pop() if len(pages.full) > len(pages.published) else None
        super().free(pages)
        if page is not None and page % 5:
            self._full_pool.release(page)


@pytest.mark.parametrize(
    "cache_class",
    [SlidesOneTooEarly, PublishesBeforeTheStep, ForgetsToSendSwappedPages, LeaksThePagesOfTheDead],
)
def test_a_seeded_bug_is_caught(cache_class):
    trace_operations = random_operations(random.Random(0), 600)
    with pytest.raises((AssertionError, KeyError)):
        drive(CROWDED, trace_operations, cache_class=cache_class)
