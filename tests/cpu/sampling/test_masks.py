"""The mask of a grammar comes before everything else that a request asks of its logits."""

import pytest
import torch

from mimo_engine.config.sampling import GrammarSpec, SamplingParams
from mimo_engine.sampling.sampler import SamplingRow, sample

NUM_TOKENS = 77


def row(**params):
    return SamplingRow(
        params=SamplingParams(max_tokens=None, **params),
        seed=7,
        output_index=0,
        token_ids=[3, 3, 5],
        num_prompt_tokens=1,
        stop_ids=(40,),
    )


def words(*rows):
    """Masks [R, 3] that allow the ids in each of `rows`; None: all."""
    masks = torch.zeros((len(rows), 96), dtype=torch.bool)
    for mask, ids in zip(masks, rows, strict=True):
        mask[: NUM_TOKENS if ids is None else 0] = True
        mask[list(ids or ())] = True
    shifted = masks.view(len(rows), 3, 32).long() << torch.arange(32)
    return shifted.sum(dim=-1).to(torch.int32)


@pytest.mark.parametrize(
    "params",
    [
        {"temperature": 0.0},
        {"temperature": 3.0},
        {"top_p": 0.9},
        {"top_k": 5, "min_p": 0.1},
        {"logit_bias": {1: 100.0, 31: 50.0}, "repetition_penalty": 1.5},
        {"presence_penalty": 2.0, "frequency_penalty": -2.0},
    ],
)
def test_only_allowed_ids_are_chosen_and_free_rows_are_untouched(params):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        logits = torch.randn((3, 80), generator=generator) * 4
        rows = [row(**params)] * 3
        allowed = {0, 31, 32, 63, 76}
        free = sample(logits, rows, num_live_tokens=NUM_TOKENS)
        masks = words(allowed, None, {64})
        masked = sample(logits, rows, num_live_tokens=NUM_TOKENS, masks=masks)
        assert masked[0].token_id in allowed
        assert masked[1] == free[1]
        assert masked[2].token_id == 64


def test_a_masked_row_equals_one_whose_other_logits_are_minus_infinity():
    generator = torch.Generator().manual_seed(2)
    for params in ({"temperature": 1.5}, {"top_p": 0.8}, {"min_p": 0.2}, {"temperature": 0.0}):
        logits = torch.randn((1, NUM_TOKENS), generator=generator)
        allowed = torch.randperm(NUM_TOKENS, generator=generator)[:30]
        cut = torch.full_like(logits, -torch.inf)
        cut[:, allowed] = logits[:, allowed]
        masks = words(set(allowed.tolist()))
        [expected] = sample(cut, [row(**params)], num_live_tokens=NUM_TOKENS)
        [found] = sample(logits, [row(**params)], num_live_tokens=NUM_TOKENS, masks=masks)
        assert found.token_id == expected.token_id


def test_logprobs_are_the_models_own():
    logits = torch.zeros((1, NUM_TOKENS))
    logits[0, 9] = 5.0
    [choice] = sample(logits, [row(logprobs=1)], num_live_tokens=NUM_TOKENS, masks=words({3}))
    assert choice.token_id == 3
    assert choice.logprobs is not None
    expected = logits[0].log_softmax(dim=-1)
    assert choice.logprobs.logprob == pytest.approx(float(expected[3]))
    assert choice.logprobs.top == [(9, pytest.approx(float(expected[9])))]


def test_min_tokens_gives_way_where_a_mask_leaves_a_stop_id_alone():
    grammar = GrammarSpec(kind="regex", text="x")
    logits = torch.zeros((2, NUM_TOKENS))
    rows = [row(min_tokens=5, grammar=grammar)] * 2
    for _ in range(5):
        one, two = sample(logits, rows, num_live_tokens=NUM_TOKENS, masks=words({40}, {40, 41}))
        assert (one.token_id, two.token_id) == (40, 41)
