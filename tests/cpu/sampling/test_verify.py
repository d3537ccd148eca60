"""Verification is `sample` row by row: same tokens, same log-probabilities, whatever the batch."""

import math
from dataclasses import replace

import pytest
import torch
from draft_laws import pack
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling import rejection
from mimo_engine.sampling.logprobs import logprob_rows
from mimo_engine.sampling.rejection import Drafts, draw_drafts, verify
from mimo_engine.sampling.sampler import SamplingRow, sample
from mimo_engine.sampling.weights import scaled

NUM_TOKENS = 14
NUM_LIVE = 12
IDS = st.integers(0, NUM_LIVE - 1)
PARAMS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    top_k=st.sampled_from([-1, 1, 4, 1000]),
    min_p=st.sampled_from([0.0, 0.1]),
    repetition_penalty=st.sampled_from([1.0, 1.5]),
    presence_penalty=st.sampled_from([0.0, 0.6]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    logit_bias=st.dictionaries(IDS, st.floats(-5, 5), max_size=2),
    min_tokens=st.integers(0, 4),
    logprobs=st.sampled_from([None, 0, 3]),
)
SEEDS = st.integers(-(2**63), 2**64 - 1)


def model(seed):
    """Logits [last token, NUM_TOKENS] of the next token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_TOKENS, NUM_TOKENS, generator=generator) * 2


def row_after(params, seed, prompt, output):
    return SamplingRow(
        params=params,
        seed=seed,
        output_index=len(output),
        token_ids=[*prompt, *output],
        num_prompt_tokens=len(prompt),
        stop_ids=(1, 5),
    )


@given(
    params=PARAMS,
    seed=SEEDS,
    prompt=st.lists(IDS, min_size=1, max_size=4),
    guesses=st.lists(st.one_of(st.none(), IDS), max_size=5),
    masked=st.booleans(),
    model_seed=st.integers(0, 2**31),
)
def test_point_masses_leave_the_text_as_it_is(params, seed, prompt, guesses, masked, model_seed):
    """A guess of None is the right one."""
    table = model(model_seed)
    allowed = torch.rand(NUM_TOKENS, NUM_LIVE, generator=torch.Generator().manual_seed(1)) < 0.5
    allowed[:, 3] = True
    masks = pack(allowed.numpy())
    options = {"num_live_tokens": NUM_LIVE}

    expected, output = [], []
    for _ in range(len(guesses) + 1):
        last = (prompt + output)[-1:]
        row = row_after(params, seed, prompt, output)
        expected += sample(table[last], [row], masks=masks[last] if masked else None, **options)
        output.append(expected[-1].token_id)

    drafts = [output[i] if guess is None else guess for i, guess in enumerate(guesses)]
    rows = [row_after(params, seed, prompt, drafts[:i]) for i in range(len(drafts) + 1)]
    last = [row.token_ids[-1] for row in rows]
    (found,) = verify(
        table[last],
        rows,
        [Drafts(token_ids=drafts)],
        masks=masks[last] if masked else None,
        **options,
    )
    assert found == expected[: len(found)]
    wrong = [i for i, draft in enumerate(drafts) if draft != output[i]]
    assert len(found) == (wrong[0] if wrong else len(drafts)) + 1


def sequence(table, params, seed, prompt, num_drafts, rule, num_live=NUM_LIVE):
    """Logits, rows and drafts of one sequence; `rule`: where the drafts come from."""
    drafts, proposals = [], []
    for _ in range(num_drafts):
        row = row_after(params, seed, prompt, drafts)
        logits = (table * 0.8)[row.token_ids[-1:]]
        ids, probabilities = draw_drafts(
            logits, [row], num_live_tokens=num_live, sampled=rule == "sampled"
        )
        drafts.append(int(ids))
        proposals += probabilities
    is_sampled = rule == "sampled" and not params.is_greedy
    rows = [row_after(params, seed, prompt, drafts[:i]) for i in range(num_drafts + 1)]
    logits = table[[row.token_ids[-1] for row in rows]]
    return logits, rows, Drafts(token_ids=drafts, probabilities=proposals if is_sampled else None)


def verify_together(sequences, num_live=NUM_LIVE):
    return verify(
        torch.cat([logits for logits, _, _ in sequences]),
        [row for _, rows, _ in sequences for row in rows],
        [drafts for _, _, drafts in sequences],
        num_live_tokens=num_live,
    )


SEQUENCES = st.builds(
    sequence,
    st.builds(model, st.integers(0, 2**31)),
    PARAMS,
    SEEDS,
    st.lists(IDS, min_size=1, max_size=4),
    st.integers(0, 4),
    st.sampled_from(["point", "sampled"]),
)


@given(sequences=st.lists(SEQUENCES, min_size=2, max_size=5), data=st.data())
def test_a_sequence_is_the_same_alone_and_in_any_batch(sequences, data):
    together = verify_together(sequences)
    assert together == [verify_together([one])[0] for one in sequences]
    order = data.draw(st.permutations(range(len(sequences))))
    assert verify_together([sequences[i] for i in order]) == [together[i] for i in order]


@given(sequences=st.lists(SEQUENCES, min_size=1, max_size=4))
def test_rows_are_tested_in_groups_of_any_size(sequences):
    together = verify_together(sequences)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rejection, "_ELEMENTS_AT_ONCE", 2 * NUM_LIVE)
        assert verify_together(sequences) == together


@pytest.mark.parametrize("params", [SamplingParams(logprobs=2), SamplingParams(top_p=0.9)])
def test_sequences_of_the_real_vocabulary_are_the_same_alone_and_in_a_batch(params):
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(8, 152576, generator=generator) * 3
    table[:, 8:] -= 9.0  # mostly ids that the table has a row for
    sequences = []
    for seed in range(4):
        rows = [row_after(params, seed, [seed], [1, 2][:i]) for i in range(3)]
        q = (table[seed : seed + 2, :151675] / 2).softmax(dim=-1)
        drafts = Drafts(token_ids=[1, 2], probabilities=None if seed == 0 else list(q))
        sequences.append((table[[seed, 1, 2]], rows, drafts))
    together = verify_together(sequences, num_live=151675)
    assert together == [verify_together([one], num_live=151675)[0] for one in sequences]


@given(one=SEQUENCES)
def test_logprobs_are_of_the_model_at_each_row(one):
    logits, rows, drafts = one
    (found,) = verify_together([one])
    assert [choice.token_id for choice in found[:-1]] == list(drafts.token_ids[: len(found) - 1])
    num_top = rows[0].params.logprobs
    if num_top is None:
        assert all(choice.logprobs is None for choice in found)
        return
    expected = logprob_rows(
        logits[: len(found)],
        [choice.token_id for choice in found],
        [num_top] * len(found),
        num_live_tokens=NUM_LIVE,
    )
    assert [choice.logprobs for choice in found] == expected


def test_sequences_without_drafts_are_sampled():
    table = model(3)
    rows = [row_after(SamplingParams(), seed, [seed], []) for seed in range(9)]
    empty = [Drafts(token_ids=(), probabilities=() if i % 2 else None) for i in range(9)]
    found = verify(table[:9], rows, empty, num_live_tokens=NUM_LIVE)
    assert found == [[choice] for choice in sample(table[:9], rows, num_live_tokens=NUM_LIVE)]
    assert verify(table[:0], [], [], num_live_tokens=NUM_LIVE) == []


def test_drafts_are_the_best_token_unless_the_request_wants_them_drawn():
    logits = torch.tensor([[1.0, 3.0, 3.0, 9.0]]).expand(3, -1)
    greedy = row_after(SamplingParams(temperature=0), 0, [], [])
    drawn = row_after(SamplingParams(temperature=2.0), 0, [], [])
    rows = [greedy, drawn, greedy]
    ids, probabilities = draw_drafts(logits, rows, num_live_tokens=3, sampled=False)
    assert ids.tolist() == [1, 1, 1]
    assert probabilities == [None, None, None]
    ids, probabilities = draw_drafts(logits, rows, num_live_tokens=3, sampled=True)
    assert ids[[0, 2]].tolist() == [1, 1]
    assert probabilities[0] is probabilities[2] is None
    torch.testing.assert_close(probabilities[1], (logits[0, :3] / 2).softmax(dim=-1))


def test_a_draft_is_a_function_of_its_row():
    table = model(4)
    rows = [row_after(SamplingParams(temperature=1.5), seed, [], []) for seed in range(9)]
    together, _ = draw_drafts(table[:9], rows, num_live_tokens=NUM_LIVE, sampled=True)
    for i, row in enumerate(rows):
        alone, _ = draw_drafts(table[i : i + 1], [row], num_live_tokens=NUM_LIVE, sampled=True)
        assert alone.tolist() == [together[i]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_damaged_draft_layer_gives_drafts_all_the_same(bad):
    logits = torch.full((2, NUM_TOKENS), bad)
    rows = [row_after(SamplingParams(temperature=t), 0, [], []) for t in (0.0, 1.0)]
    ids, probabilities = draw_drafts(logits, rows, num_live_tokens=NUM_LIVE, sampled=True)
    assert all(0 <= token_id < NUM_LIVE for token_id in ids.tolist())
    assert probabilities[1].sum().item() == pytest.approx(1.0)


def test_a_draft_that_the_target_forbids_is_replaced():
    table = torch.zeros(NUM_TOKENS, NUM_TOKENS)
    params = SamplingParams(logit_bias={4: -100.0})
    q = torch.eye(NUM_LIVE)[4]
    drafts = [Drafts(token_ids=[4], probabilities=[q])] * 300
    rows = [row_after(params, seed, [0], [4][:i]) for seed in range(300) for i in range(2)]
    found = verify(table.expand(-1, -1)[[0] * 600], rows, drafts, num_live_tokens=NUM_LIVE)
    assert all(len(choices) == 1 for choices in found)
    assert {choices[0].token_id for choices in found} == set(range(NUM_LIVE)) - {4}


def test_where_nothing_is_left_of_the_target_it_stands_in_itself():
    p = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.5, 0.3, 0.2, 0.0]], dtype=torch.float64)
    q = torch.tensor([[0.5, 0.3, 0.2, 0.0], [0.4, 0.3, 0.1, 0.2]], dtype=torch.float64)
    weights = rejection._residual(p, q)
    assert weights[0].tolist() == scaled(p[0]).tolist()
    assert (weights[1] > 0).tolist() == [True, False, True, False]


def test_drawn_drafts_of_a_greedy_request_are_a_mistake():
    _, rows, _ = sequence(model(0), SamplingParams(temperature=0), 0, [0], 1, "point")
    drafts = Drafts(token_ids=[1], probabilities=[torch.full((NUM_LIVE,), 1 / NUM_LIVE)])
    with pytest.raises(AssertionError, match="greedy"):
        verify(model(0)[:2], rows, [drafts], num_live_tokens=NUM_LIVE)


def test_a_row_that_forbids_every_token_is_an_error():
    logits, rows, drafts = sequence(model(0), SamplingParams(), 0, [0], 2, "sampled")
    rows = [replace(row, output_index=5) for row in rows]
    logits = logits.clone()
    logits[1] = -math.inf
    with pytest.raises(FloatingPointError, match="row 1 of the logits"):
        verify(logits, rows, [drafts], num_live_tokens=NUM_LIVE)
