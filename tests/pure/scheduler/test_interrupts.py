"""Ctrl-C while a step is planned or taken in, between any two lines: what runs ends, what waits
goes on waiting, and no page or slot is lost."""

import sys

import pytest
from test_scheduler import add, make, result_of, step

PLACES = ("scheduler/", "cache/")


class Interrupted:
    """Raises KeyboardInterrupt before the line of this number in the packages of PLACES."""

    def __init__(self, number):
        self.num_left = number

    def __enter__(self):
        sys.settrace(self.trace)

    def __exit__(self, *_):
        sys.settrace(None)

    def trace(self, frame, event, _):
        name = frame.f_code.co_filename
        if "mimo_engine" not in name or not any(place in name for place in PLACES):
            return None
        if event == "line":
            self.num_left -= 1
            if self.num_left == -1:
                raise KeyboardInterrupt
        return self.trace


def scheduler_with_all_kinds():
    """One request that decodes and ends with the next token, one that has just left, and two that
    wait for its slot."""
    scheduler = make(max_num_seqs=2)
    for request_id in "abcd":
        add(scheduler, request_id, 5, max_tokens=2)
    step(scheduler)
    scheduler.abort("b")
    return scheduler


def interrupted(number, *, is_planned):
    """Whether there were so many lines."""
    scheduler = scheduler_with_all_kinds()
    plan = scheduler.plan() if is_planned else None
    try:
        with Interrupted(number):
            if plan is None:
                scheduler.plan()
            else:
                scheduler.apply(plan, result_of(plan))
    except KeyboardInterrupt:
        scheduler.discard()
    else:
        return False
    scheduler._cache.check()
    stats = scheduler.stats()
    assert (stats.num_running, stats.full_pages_used, stats.sliding_pages_used) == (0, 0, 0)
    assert stats.num_waiting >= 1
    add(scheduler, "a", 5, max_tokens=2)
    answered = set()
    while scheduler.has_work:
        answered |= {output.request_id for output in step(scheduler)[1]}
    assert {"a", "d"} <= answered <= {"a", "c", "d"}
    return True


@pytest.mark.parametrize("is_planned", [False, True])
def test_an_interrupt_anywhere_leaves_a_scheduler_that_works(is_planned):
    number = 0
    while interrupted(number, is_planned=is_planned):
        number += 1
    assert number > 30
