import pytest

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.scheduler.policy import (
    Accepted,
    accept_tokens,
    derive_seed,
    longest_total,
    stop_ids,
)


def accept(tokens: list[int], **changes: int) -> Accepted:
    arguments = {"num_output_tokens": 0, "num_tokens_left": 100, "min_tokens": 0}
    return accept_tokens(tokens, stop_ids=(7, 8), **(arguments | changes))


def test_tokens_that_end_nothing_all_count():
    assert accept([1, 2, 3]) == Accepted(3)


def test_drafts_after_the_first_stop_do_not_count():
    assert accept([1, 8, 7, 2]) == Accepted(2, "stop", 8)


def test_the_length_cuts_drafts_too():
    assert accept([1, 2, 3], num_tokens_left=2) == Accepted(2, "length")
    assert accept([1, 2, 3], num_tokens_left=3) == Accepted(3, "length")
    assert accept([1, 2, 3], num_tokens_left=4) == Accepted(3)


def test_a_stop_at_the_last_possible_token_is_a_stop():
    assert accept([1, 7], num_tokens_left=2) == Accepted(2, "stop", 7)


@pytest.mark.parametrize(("num_output_tokens", "num_accepted"), [(0, 3), (1, 3), (2, 1), (5, 1)])
def test_a_stop_id_counts_when_min_tokens_stand_before_it(num_output_tokens, num_accepted):
    found = accept([7, 1, 7, 7], num_output_tokens=num_output_tokens, min_tokens=2)
    assert found == Accepted(num_accepted, "stop", 7)


def test_stop_ids_are_eos_and_the_request_s_own_each_once():
    assert stop_ids(SamplingParams(stop_token_ids=(5, 2)), (1, 2)) == (1, 2, 5)
    assert stop_ids(SamplingParams(stop_token_ids=(5,), ignore_eos=True), (1, 2)) == (5,)


def test_a_request_may_fill_the_context_and_no_more():
    assert longest_total(10, 5, 100) == 15
    assert longest_total(10, 500, 100) == 100
    assert longest_total(10, None, 100) == 100


def test_derived_seeds_differ_by_engine_and_by_arrival_and_repeat():
    seeds = {derive_seed(engine, arrival) for engine in range(20) for arrival in range(200)}
    assert len(seeds) == 20 * 200
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(3, 4) == derive_seed(3, 4)
