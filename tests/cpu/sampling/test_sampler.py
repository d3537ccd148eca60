"""Draws follow the filtered distribution and depend on nothing but their own row."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling.sampler import SamplingRow, sample

NUM_TOKENS = 24
NUM_LIVE = 21


def sampling_row(params, *, seed=0, output_index=0, token_ids=(), num_prompt_tokens=0, stop=()):
    return SamplingRow(
        params=params,
        seed=seed,
        output_index=output_index,
        token_ids=list(token_ids),
        num_prompt_tokens=num_prompt_tokens,
        stop_ids=tuple(stop),
    )


def ids_of(logits, rows, num_live=NUM_LIVE):
    return [choice.token_id for choice in sample(logits, rows, num_live_tokens=num_live)]


def slow_distribution(logits, params):
    """Probabilities [V] of one row, filter by filter, in float64."""
    logits = np.asarray(logits, dtype=np.float64).copy()
    logits[NUM_LIVE:] = -np.inf
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    probs = np.exp((logits - logits.max()) / params.temperature)
    probs[probs < params.min_p * probs.max()] = 0.0
    if params.top_k > 0:
        probs[order[params.top_k :]] = 0.0
    probs /= probs.sum()
    before = 0.0
    for token in order:
        before, probability = before + probs[token], probs[token]
        if before - probability >= params.top_p:
            probs[token] = 0.0
    return probs / probs.sum()


def assert_follows(counts, probs):
    """Chi-square at about five standard deviations; what has no probability never came."""
    possible = probs > 0
    assert counts[~possible].sum() == 0
    expected = probs[possible] * counts.sum()
    # Rare tokens share one cell, where the normal approximation holds.
    common = expected >= 10
    cells = [*zip(counts[possible][common], expected[common], strict=True)]
    cells.append((counts[possible][~common].sum(), expected[~common].sum()))
    statistic = sum((seen - mean) ** 2 / mean for seen, mean in cells if mean > 0)
    num_free = max(1, len(cells) - 1)
    assert statistic < num_free + 5 * math.sqrt(2 * num_free) + 10


FILTERS = {
    "none": SamplingParams(),
    "cold": SamplingParams(temperature=0.3),
    "hot": SamplingParams(temperature=3.0),
    "min_p": SamplingParams(min_p=0.2),
    "min_p, hot": SamplingParams(min_p=0.2, temperature=2.0),
    "top_k": SamplingParams(top_k=5),
    "top_k with a tie at its edge": SamplingParams(top_k=3, logit_bias={2: 0.5}),
    "top_p": SamplingParams(top_p=0.7),
    "top_p that keeps one": SamplingParams(top_p=1e-9),
    "top_k and top_p": SamplingParams(top_k=6, top_p=0.8),
    "all": SamplingParams(temperature=1.5, min_p=0.05, top_k=9, top_p=0.9, logit_bias={1: 2.0}),
}


@pytest.mark.parametrize("params", FILTERS.values(), ids=FILTERS.keys())
def test_draws_follow_the_filtered_distribution(params):
    torch.manual_seed(1)
    logits = (torch.randn(NUM_TOKENS) * 1.5).round(decimals=1)
    logits[NUM_LIVE:] = 50.0
    rows = [sampling_row(params, seed=5, output_index=i) for i in range(4000)]
    drawn = ids_of(logits.expand(4000, -1), rows)
    counts = np.bincount(drawn, minlength=NUM_TOKENS)
    assert_follows(counts, slow_distribution(logits.tolist(), params))


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.49, {0}), (0.51, {0, 1}), (0.79, {0, 1}), (0.81, {0, 1, 2})]
)
def test_top_p_keeps_the_shortest_prefix_that_reaches_it(top_p, kept):
    logits = torch.tensor([0.5, 0.3, 0.2]).log().expand(500, -1)
    rows = [sampling_row(SamplingParams(top_p=top_p), output_index=i) for i in range(500)]
    assert set(ids_of(logits, rows, num_live=3)) == kept


def test_equal_logits_at_the_edge_of_top_k_are_kept_by_id():
    rows = [sampling_row(SamplingParams(top_k=2), output_index=i) for i in range(200)]
    assert set(ids_of(torch.zeros(200, 5), rows, num_live=5)) == {0, 1}


PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([-1, 1, 4, 1000]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.dictionaries(st.integers(0, NUM_LIVE - 1), st.floats(-5, 5), max_size=2),
    min_tokens=st.integers(0, 2),
    logprobs=st.sampled_from([None, 0, 3]),
)
ROWS = st.builds(
    sampling_row,
    PARAMS,
    seed=st.integers(-(2**63), 2**64 - 1),
    output_index=st.integers(0, 5),
    token_ids=st.lists(st.integers(0, NUM_LIVE - 1), max_size=5),
    num_prompt_tokens=st.integers(0, 5),
    stop=st.lists(st.integers(0, NUM_LIVE - 1), max_size=2),
)


@given(rows=st.lists(ROWS, min_size=2, max_size=9), seed=st.integers(0, 2**31), data=st.data())
def test_a_row_is_the_same_alone_and_in_any_batch(rows, seed, data):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(rows), NUM_TOKENS, generator=generator) * 3
    together = sample(logits, rows, num_live_tokens=NUM_LIVE)
    for i, row in enumerate(rows):
        assert sample(logits[i : i + 1], [row], num_live_tokens=NUM_LIVE) == [together[i]]
    order = data.draw(st.permutations(range(len(rows))))
    mixed = sample(logits[order], [rows[i] for i in order], num_live_tokens=NUM_LIVE)
    assert mixed == [together[i] for i in order]


def test_a_row_of_the_real_vocabulary_is_the_same_alone_and_in_a_batch():
    torch.manual_seed(0)
    logits = torch.randn(4, 152576) * 3
    for params in (SamplingParams(logprobs=5), SamplingParams(top_p=0.95, logprobs=5)):
        rows = [sampling_row(params, seed=i) for i in range(4)]
        together = sample(logits, rows, num_live_tokens=151675)
        for i, row in enumerate(rows):
            assert sample(logits[i : i + 1], [row], num_live_tokens=151675) == [together[i]]


def test_a_draw_is_a_function_of_seed_and_place():
    logits = torch.zeros(1, 1000)

    def draw(seed, place):
        row = sampling_row(SamplingParams(), seed=seed, output_index=place)
        return ids_of(logits, [row], num_live=1000)[0]

    assert draw(3, 4) == draw(3, 4)
    assert len({draw(seed, place) for seed in range(5) for place in range(5)}) > 20


def test_greedy_takes_the_lowest_of_equal_ids_and_no_dead_row():
    logits = torch.tensor([[1.0, 3.0, 3.0, 9.0], [2.0, 2.0, 2.0, 9.0]])
    rows = [sampling_row(SamplingParams(temperature=t)) for t in (0.0, 1e-7)]
    assert ids_of(logits, rows, num_live=3) == [1, 0]


def test_greedy_sees_penalties_and_bias():
    logits = torch.tensor([[3.0, 2.9, 0.0], [3.0, 2.9, 0.0]])
    penalised = SamplingParams(temperature=0, presence_penalty=1.0)
    biased = SamplingParams(temperature=0, logit_bias={2: 10.0})
    rows = [
        sampling_row(penalised, token_ids=[1, 0], num_prompt_tokens=1, output_index=1),
        sampling_row(biased),
    ]
    assert ids_of(logits, rows, num_live=3) == [1, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bias_forces_and_forbids(temperature):
    torch.manual_seed(2)
    logits = torch.randn(100, NUM_TOKENS)
    forced = SamplingParams(temperature=temperature, logit_bias={17: 100.0})
    banned = SamplingParams(temperature=temperature, logit_bias=dict.fromkeys(range(20), -100.0))
    rows = [sampling_row(forced, output_index=i) for i in range(100)]
    assert set(ids_of(logits, rows)) == {17}
    rows = [sampling_row(banned, output_index=i) for i in range(100)]
    assert set(ids_of(logits, rows)) == {20}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_stop_id_cannot_be_drawn_before_min_tokens(temperature):
    logits = torch.zeros(1, NUM_TOKENS)
    logits[0, 3] = 60.0
    params = SamplingParams(temperature=temperature, min_tokens=5)
    row = sampling_row(params, output_index=4, stop=(3,))
    assert ids_of(logits, [row]) != [3]
    assert ids_of(logits, [replace(row, output_index=5)]) == [3]


def test_logprobs_are_of_the_model_and_not_of_the_filters():
    torch.manual_seed(3)
    logits = torch.randn(2, NUM_TOKENS)
    params = SamplingParams(temperature=0.1, top_k=1, logit_bias={7: 50.0}, logprobs=2)
    plain = SamplingParams(temperature=0)
    with_scores, without = sample(
        logits, [sampling_row(params), sampling_row(plain)], num_live_tokens=NUM_LIVE
    )
    assert without.logprobs is None
    row = with_scores.logprobs
    expected = logits[0, :NUM_LIVE].double().log_softmax(-1)
    assert row is not None
    assert row.token_id == with_scores.token_id == 7
    assert row.logprob == pytest.approx(expected[7].item(), abs=1e-5)
    assert row.rank == 1 + int((expected > expected[7]).sum())
    assert [token for token, _ in row.top] == expected.topk(2).indices.tolist()


def test_extreme_temperatures_are_harmless():
    logits = torch.tensor([[1e30, 0.0, -1e30]]).expand(2, -1)
    rows = [sampling_row(SamplingParams(temperature=t, top_p=0.5)) for t in (1e-5, 1000.0)]
    assert ids_of(logits, rows, num_live=3) == [0, 0]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_an_error_that_names_the_row(temperature, bad):
    logits = torch.zeros(3, NUM_TOKENS)
    logits[1, 4] = bad
    rows = [sampling_row(SamplingParams(temperature=temperature))] * 3
    with pytest.raises(FloatingPointError, match="row 1 of the logits"):
        sample(logits, rows, num_live_tokens=NUM_LIVE)


def test_a_row_that_forbids_every_token_is_an_error():
    with pytest.raises(FloatingPointError, match="row 0"):
        sample(torch.full((1, 3), -math.inf), [sampling_row(SamplingParams())], num_live_tokens=3)


def test_damage_in_dead_rows_harms_nobody():
    logits = torch.zeros(1, NUM_TOKENS)
    logits[:, NUM_LIVE:] = math.nan
    assert ids_of(logits, [sampling_row(SamplingParams(temperature=0))]) == [0]
