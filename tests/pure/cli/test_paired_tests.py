"""Paired comparisons against numbers worked out by hand, and against their promise on noise."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.cli.paired_tests import mean_and_error, paired_difference, sign_test


def test_mean_and_standard_error_are_those_of_the_textbook():
    mean, error = mean_and_error([1.0, 2.0, 3.0, 4.0])
    assert mean == 2.5
    assert error == pytest.approx(math.sqrt((2.25 + 0.25 + 0.25 + 2.25) / 3 / 4))


def test_one_value_says_nothing_about_its_error():
    assert mean_and_error([3.0]) == (3.0, math.inf)
    assert not paired_difference([0.0], [100.0]).is_decisive
    assert paired_difference([0.0], [100.0]).num_needed is None


def test_what_pairs_share_cancels_out():
    hard = [0.0, 100.0, -50.0, 7.0]
    gain = paired_difference(hard, [value + 0.5 for value in hard])
    assert (gain.mean, gain.standard_error) == (0.5, 0.0)
    assert gain.is_decisive
    assert gain.exceeds(1000.0)


def test_equal_scores_decide_nothing_and_no_number_of_them_would():
    tie = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert not tie.is_decisive
    assert not tie.exceeds(2.0)
    assert tie.num_needed is None


def test_a_difference_decides_above_two_standard_errors_in_either_direction():
    # Differences 0 and 2: mean 1, standard error 1. Shifted by 1 the mean is exactly two errors.
    assert not paired_difference([0.0, 0.0], [1.0, 3.0]).is_decisive
    assert paired_difference([0.0, 0.0], [1.01, 3.01]).is_decisive
    assert paired_difference([1.01, 3.01], [0.0, 0.0]).is_decisive
    assert not paired_difference([1.01, 3.01], [0.0, 0.0]).exceeds(2.0)


def test_half_the_difference_needs_four_times_the_pairs():
    spread = [-1.0, 1.0] * 50
    needed = [
        paired_difference([0.0] * 100, [value + gain for value in spread]).num_needed
        for gain in (0.1, 0.05)
    ]
    # Pairs scatter by 1.005, which is 20.1 half gains of 0.1: the square of that.
    assert needed[0] == 405
    assert needed[1] == pytest.approx(4 * needed[0], abs=4)


def test_noise_is_decisive_about_once_in_twenty():
    rng = random.Random(0)
    found = sum(
        paired_difference([0.0] * 50, [rng.gauss(0, 1) for _ in range(50)]).is_decisive
        for _ in range(2000)
    )
    assert 0.03 < found / 2000 < 0.07


def test_the_sign_test_counts_only_where_the_two_disagree():
    agree = [True] * 10 + [False] * 10
    assert sign_test(agree, agree) == 1.0
    # Six wins to none: 2 / 2**6. Five: not enough for 5 %.
    assert sign_test([*agree, *[True] * 6], [*agree, *[False] * 6]) == 2 / 64
    assert sign_test([True] * 5, [False] * 5) == 2 / 32
    # One of seven against: 2 * (1 + 7) / 2**7.
    assert sign_test([True] * 6 + [False], [False] * 6 + [True]) == 16 / 128


@given(st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40))
def test_the_sign_test_is_a_probability_and_does_not_ask_who_is_first(pairs):
    first, second = [a for a, _ in pairs], [b for _, b in pairs]
    assert 0.0 < sign_test(first, second) <= 1.0
    assert sign_test(first, second) == sign_test(second, first)
