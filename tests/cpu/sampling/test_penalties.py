"""Bias, minimum length and penalties against their formulas, written out token by token."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling.penalties import SamplingRow, adjust

NUM_TOKENS = 12
IDS = st.integers(0, NUM_TOKENS - 1)


def sampling_row(params, prompt=(), output=(), stop_ids=()):
    return SamplingRow(
        params=params,
        seed=0,
        output_index=len(output),
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        stop_ids=tuple(stop_ids),
    )


def slow_adjust(logits, row):
    """Per token, in the order that SamplingParams states."""
    params = row.params
    prompt = row.token_ids[: row.num_prompt_tokens]
    output = row.token_ids[row.num_prompt_tokens :]
    result = []
    for token, value in enumerate(logits):
        value += params.logit_bias.get(token, 0.0)
        if len(output) < params.min_tokens and token in row.stop_ids:
            value = -float("inf")
        if token in prompt or token in output:
            factor = params.repetition_penalty
            value = value / factor if value > 0 else value * factor
        value -= params.frequency_penalty * output.count(token)
        value -= params.presence_penalty * (token in output)
        result.append(value)
    return result


ROWS = st.builds(
    sampling_row,
    st.builds(
        SamplingParams,
        repetition_penalty=st.sampled_from([1.0, 0.5, 1.3, 2.0]),
        presence_penalty=st.sampled_from([0.0, -2.0, 0.7]),
        frequency_penalty=st.sampled_from([0.0, -0.3, 2.0]),
        logit_bias=st.dictionaries(IDS, st.floats(-100, 100), max_size=3),
        min_tokens=st.integers(0, 4),
    ),
    prompt=st.lists(IDS, max_size=6),
    output=st.lists(IDS, max_size=6),
    stop_ids=st.lists(IDS, max_size=3),
)


@given(rows=st.lists(ROWS, min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_each_row_follows_the_formulas(rows, seed):
    logits = torch.randn(len(rows), NUM_TOKENS, generator=torch.Generator().manual_seed(seed)) * 4
    before = logits.clone()
    expected = torch.tensor(
        [slow_adjust(values, row) for values, row in zip(logits.tolist(), rows, strict=True)]
    )
    torch.testing.assert_close(adjust(logits, rows), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(logits, before)


def test_rows_that_ask_for_nothing_cost_nothing():
    logits = torch.randn(2, NUM_TOKENS)
    rows = [sampling_row(SamplingParams(), output=[1]), sampling_row(SamplingParams(min_tokens=0))]
    assert adjust(logits, rows) is logits


def test_min_tokens_counts_the_output_alone():
    params = SamplingParams(min_tokens=2)
    logits = torch.zeros(3, NUM_TOKENS)
    rows = [sampling_row(params, [1] * 9, [1] * n, stop_ids=[4, 7]) for n in (0, 1, 2)]
    masked = adjust(logits, rows).isinf()
    assert masked.nonzero().tolist() == [[0, 4], [0, 7], [1, 4], [1, 7]]


def test_ids_without_a_live_row_are_passed_over():
    params = SamplingParams(repetition_penalty=2.0, presence_penalty=1.0, min_tokens=9)
    row = sampling_row(params, [NUM_TOKENS + 5], [NUM_TOKENS], stop_ids=[NUM_TOKENS + 1])
    assert torch.equal(adjust(torch.ones(1, NUM_TOKENS), [row]), torch.ones(1, NUM_TOKENS))


def test_a_bias_outside_the_vocabulary_is_our_own_mistake():
    row = sampling_row(SamplingParams(logit_bias={NUM_TOKENS: 1.0}))
    with pytest.raises(AssertionError, match="when a request is accepted"):
        adjust(torch.zeros(1, NUM_TOKENS), [row])
