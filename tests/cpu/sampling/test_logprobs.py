"""Log-probabilities against float64 arithmetic, and a fixed order of equal ones."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.sampling.logprobs import logprob_rows


def slow_row(logits, token_id, count):
    """(logprob, rank, top) of one row of Python floats."""
    total = math.fsum(math.exp(value) for value in logits)
    scores = [value - math.log(total) for value in logits]
    order = sorted(range(len(scores)), key=lambda token: (-logits[token], token))
    rank = 1 + sum(value > logits[token_id] for value in logits)
    return scores[token_id], rank, [(token, scores[token]) for token in order[:count]]


@given(
    rows=st.lists(
        st.lists(st.integers(-12, 12), min_size=9, max_size=9).map(
            lambda row: [value / 4 for value in row]
        ),
        min_size=1,
        max_size=4,
    ),
    data=st.data(),
)
def test_rows_equal_the_formula_with_equal_values_by_id(rows, data):
    num_live = data.draw(st.integers(1, 9))
    token_ids = data.draw(
        st.lists(st.integers(0, num_live - 1), min_size=len(rows), max_size=len(rows))
    )
    counts = data.draw(st.lists(st.integers(0, 12), min_size=len(rows), max_size=len(rows)))
    found = logprob_rows(torch.tensor(rows), token_ids, counts, num_live_tokens=num_live)
    for row, logits, token_id, count in zip(found, rows, token_ids, counts, strict=True):
        logprob, rank, top = slow_row(logits[:num_live], token_id, count)
        assert (row.token_id, row.rank) == (token_id, rank)
        assert row.logprob == pytest.approx(logprob, abs=1e-5)
        assert [token for token, _ in row.top] == [token for token, _ in top]
        assert [value for _, value in row.top] == pytest.approx([v for _, v in top], abs=1e-5)


def test_prompt_scores_do_not_depend_on_how_many_are_scored_at_once():
    logits = torch.randn(150, 77)
    targets = torch.randint(0, 70, (150,)).tolist()
    together = logprob_rows(logits, targets, [3] * 150, num_live_tokens=70)
    alone = [
        logprob_rows(logits[i : i + 1], targets[i : i + 1], [3], num_live_tokens=70)[0]
        for i in range(150)
    ]
    assert together == alone


def test_forbidden_tokens_have_no_probability_and_come_last():
    logits = torch.tensor([[0.0, -math.inf, 0.0, -0.0]])
    (row,) = logprob_rows(logits, [1], [4], num_live_tokens=4)
    assert (row.logprob, row.rank) == (-math.inf, 4)
    assert [token for token, _ in row.top] == [0, 2, 3, 1]


def test_half_precision_is_scored_in_single():
    logits = torch.randn(3, 50).bfloat16()
    found = logprob_rows(logits, [1, 2, 3], [2] * 3, num_live_tokens=50)
    assert found == logprob_rows(logits.float(), [1, 2, 3], [2] * 3, num_live_tokens=50)


def test_a_damaged_row_is_named():
    logits = torch.zeros(70, 5)
    logits[66, 2] = math.nan
    with pytest.raises(FloatingPointError, match="row 66"):
        logprob_rows(logits, [0] * 70, [1] * 70, num_live_tokens=5)


def test_no_rows_have_no_scores():
    assert logprob_rows(torch.zeros(0, 5), [], [], num_live_tokens=5) == []
