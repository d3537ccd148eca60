"""Confidence intervals against known values, their edges, and how often they hold."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.eval.intervals import rate_interval, wilson_interval


@pytest.mark.parametrize(
    ("num_right", "num", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I: Wilson's score method.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilsons_interval_has_the_published_values(num_right, num, low, high):
    assert wilson_interval(num_right, num) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_interval_holds_the_share_and_stays_within_0_and_1(counts):
    num_right, num = counts
    low, high = wilson_interval(num_right, num)
    assert 0 <= low <= num_right / num <= high <= 1
    mirrored = wilson_interval(num - num_right, num)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high))


def test_300_items_know_their_share_to_six_points():
    low, high = wilson_interval(150, 300)
    assert high - low < 0.12


@pytest.mark.parametrize(
    ("counts", "totals"),
    [([0, 0, 0], [5, 6, 7]), ([1, 2, 3], [10, 20, 30]), ([3, 9, 21], [1, 3, 7])],
)
def test_items_that_do_not_differ_tell_no_spread(counts, totals):
    assert rate_interval(counts, totals) is None


def test_a_rate_by_hand():
    # r = 0.3; squares (1-3)^2 + (5-3)^2 = 8, times 2 / 1, root 4; over 20 words: 0.2.
    assert rate_interval([1, 5], [10, 10]) == pytest.approx((0.0, 0.3 + 12.7062 * 0.2))


@pytest.mark.parametrize(
    ("num", "student"),
    # 97.5 % points of Student's distribution with num - 1 degrees of freedom.
    [(3, 4.3027), (6, 2.5706), (11, 2.2281), (12, 2.2010), (31, 2.0423), (121, 1.9799)],
)
def test_few_items_make_the_interval_wider(num, student):
    # One count of 1 among `num` of 10: by hand, the deviation of the rate is 1 / (10 num).
    low, high = rate_interval([1] + [0] * (num - 1), [10] * num)
    assert low == 0
    assert high == pytest.approx((1 + student) / (10 * num), abs=0.003 / (10 * num))


def test_95_of_100_intervals_of_five_clips_hold_the_true_rate():
    rng = random.Random(0)
    held = 0
    for _ in range(1000):
        counts = [round(rng.gauss(200, 40)) for _ in range(5)]
        low, high = rate_interval(counts, [1000] * 5)
        held += low <= 0.2 <= high
    assert 930 <= held <= 970


def test_one_item_tells_no_spread():
    assert rate_interval([1], [10]) is None


def test_95_of_100_intervals_of_rates_hold_the_true_one():
    rng = random.Random(0)
    held = 0
    for _ in range(1000):
        totals = [rng.randint(5, 40) for _ in range(60)]
        # Clips are good or bad as a whole, so words are not independent.
        hard = [rng.choice((0.02, 0.2)) for _ in totals]
        counts = [
            sum(rng.random() < h for _ in range(t)) for t, h in zip(totals, hard, strict=True)
        ]
        low, high = rate_interval(counts, totals)
        held += low <= 0.11 <= high
    assert 920 <= held <= 970
