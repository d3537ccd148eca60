"""Tokens are drawn from the distribution of sampling/weights.py, and by a row's own values alone.

Many draws are the reference's where there is no GPU; Triton's are compared with it one by one.
"""

from dataclasses import fields, replace

import pytest
import torch
from kernel_place import ON_GPU

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.kernels.sampling import RowParams, reference, triton
from mimo_engine.kernels.sampling.cases import make_params
from mimo_engine.sampling import random
from mimo_engine.sampling.penalties import SamplingRow
from mimo_engine.sampling.weights import draw, target_weights

# temperature, top_k, top_p, min_p
SETTINGS = [
    (1.0, 0, 1.0, 0.0),
    (0.4, 0, 1.0, 0.0),
    (1.0, 5, 1.0, 0.0),
    (1.3, 0, 0.8, 0.0),
    (1.0, 0, 1.0, 0.1),
    (0.9, 7, 0.7, 0.0),
    (1.5, 9, 0.9, 0.15),
]


def sampling_rows(params):
    """The same rows as the engine's own sampler knows them."""
    columns = (params.temperature, params.top_k, params.top_p, params.min_p)
    temperature, top_k, top_p, min_p = (column.tolist() for column in columns)
    return [
        SamplingRow(
            params=SamplingParams(
                temperature=temperature[i], top_k=top_k[i], top_p=top_p[i], min_p=min_p[i]
            ),
            seed=seed,
            output_index=output_index,
            token_ids=(),
            num_prompt_tokens=0,
            stop_ids=(),
        )
        for i, (seed, output_index) in enumerate(
            zip(params.seed.tolist(), params.output_index.tolist(), strict=True)
        )
    ]


def picked(params, rows):
    """The parameters of some rows."""
    return RowParams(
        **{
            field.name: value[rows].contiguous() if isinstance(value, torch.Tensor) else value
            for field in fields(params)
            for value in (getattr(params, field.name),)
        }
    )


def drawn(logits, params, num_compared=7):
    """Tokens of all rows; of the first, Triton's are the reference's."""
    tokens = reference.sample_rows(logits, params)
    if ON_GPU:
        num_compared = len(logits)
    some = slice(0, num_compared)
    got = triton.sample_rows(logits[some], picked(params, some))
    assert torch.equal(got, tokens[some])
    return tokens


def misfit(tokens, weights):
    """Chi-square of tokens against weights [V], in standard deviations from its mean. Tokens of
    less than five expected are one cell; of weight 0, none may be there."""
    expected = weights / weights.sum() * len(tokens)
    counts = torch.bincount(tokens, minlength=len(weights)).double()
    assert (counts[expected == 0] == 0).all()
    is_rare = expected < 5
    expected = torch.cat([expected[~is_rare], expected[is_rare].sum()[None]])
    counts = torch.cat([counts[~is_rare], counts[is_rare].sum()[None]])
    is_cell = expected > 0
    parts = (counts[is_cell] - expected[is_cell]).square() / expected[is_cell]
    freedom = max(1, len(parts) - 1)
    return float((parts.sum() - freedom) / (2 * freedom) ** 0.5)


def small_vocabulary(setting, device, num_rows=6000, is_masked=False):
    """One row of 24 logits with ties, many times over; two of them are dead."""
    torch.manual_seed(len(str(setting)))
    logits = (2 * torch.randn(24, device=device)).mul(2).round().div(2)
    logits[-2:] = 9
    masks = None
    if is_masked:
        masks = torch.full((num_rows, 1), 0b1011_0110_1101_1101_1011, device=device).int()
    params = make_params([setting], num_rows, 22, device, masks)
    return logits.expand(num_rows, -1).contiguous(), params


def target(logits, params):
    """The engine's weights [V] (float64) of the first row."""
    x = logits[:1, : params.num_live_tokens].clone()
    if params.masks is not None:
        allowed = [int(params.masks[0, i // 32]) >> (i % 32) & 1 for i in range(x.shape[1])]
        x[0, ~torch.tensor(allowed, dtype=torch.bool, device=x.device)] = -torch.inf
    return target_weights(x, sampling_rows(picked(params, slice(0, 1))))[0].double()


@pytest.mark.parametrize("is_masked", [False, True])
@pytest.mark.parametrize("setting", SETTINGS)
def test_tokens_are_distributed_as_the_engine_says(setting, is_masked, device, poisoned) -> None:
    logits, params = small_vocabulary(setting, device, is_masked=is_masked)
    assert misfit(drawn(logits, params, num_compared=2), target(logits, params)) < 4


@pytest.mark.parametrize("wrong", [(1.1, 5, 1.0, 0.0), (1.0, 6, 1.0, 0.0), (1.0, 5, 0.9, 0.0)])
def test_a_wrong_filter_would_be_seen(wrong, device) -> None:
    logits, params = small_vocabulary((1.0, 5, 1.0, 0.0), device)
    other = make_params([wrong], len(logits), params.num_live_tokens, device)
    weights = target(logits, params)
    tokens = reference.sample_rows(logits, other)
    # A token that may not be there, or too many of the others.
    assert (weights[tokens] == 0).any() or misfit(tokens, weights) > 8


def distance(logits, setting):
    """Total variation between what is drawn from and what the engine would draw from."""
    params = make_params([setting], len(logits), logits.shape[1], logits.device)
    weights = target_weights(logits, sampling_rows(params)).double()
    weights /= weights.sum(dim=-1, keepdim=True)
    return float((weights - reference.probabilities(logits, params)).abs().sum(dim=-1).max()) / 2


def two_levels(num_tokens, depth):
    """One token, and all others so many octaves below, where errors weigh most."""
    logits = torch.full((1, num_tokens), -depth * 0.6931 + 1e-5)
    logits += torch.rand(1, num_tokens) * 1e-3
    logits[0, 700] = 0
    return logits


@pytest.mark.parametrize("setting", [*SETTINGS, (0.02, 0, 1.0, 0.0), (300.0, 0, 1.0, 0.0)])
def test_the_distribution_differs_by_less_than_a_millionth(setting) -> None:
    torch.manual_seed(0)
    normal = 3 * torch.randn(4, 20000)
    assert distance(normal, setting) < 1e-6
    assert distance(two_levels(152576, 17), setting) < 1e-6


def test_a_worse_polynomial_would_be_seen(monkeypatch) -> None:
    first, second, *others = reference.POLYNOMIAL
    monkeypatch.setattr(reference, "POLYNOMIAL", (first, second + 20000, *others))
    assert distance(two_levels(152576, 16.5), SETTINGS[0]) > 1e-6


def test_nearly_every_seed_has_the_engine_s_token(device) -> None:
    torch.manual_seed(5)
    num_rows = 700
    logits = 2.5 * torch.randn(num_rows, 2600, device=device)
    params = make_params(SETTINGS, num_rows, 2600, device)
    expected = torch.tensor(draw(logits, sampling_rows(params)), device=device)
    # All of them here; one in 10**6 might differ.
    assert (drawn(logits, params) == expected).float().mean() > 0.995


def test_a_row_has_its_token_in_any_batch(device, poisoned) -> None:
    torch.manual_seed(6)
    stored = 2.5 * torch.randn(9, 3000, device=device)
    logits = stored[:, :2222]
    params = make_params([*SETTINGS, (0.0, 0, 1.0, 0.0)], 9, 2100, device)
    together = triton.sample_rows(logits, params)
    alone = [
        triton.sample_rows(logits[i : i + 1].clone(), picked(params, slice(i, i + 1)))
        for i in range(9)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_a_row_has_its_token_however_it_is_spread_and_listed(device, monkeypatch) -> None:
    torch.manual_seed(7)
    logits = torch.randn(5, 4000, device=device)
    params = make_params(SETTINGS[2:], 5, 4000, device)
    expected = triton.sample_rows(logits, params)
    monkeypatch.setattr(triton, "_WANTED_PROGRAMS", 1)
    monkeypatch.setattr(triton, "_MAX_LISTED", 4)
    assert torch.equal(triton.sample_rows(logits, params), expected)


def test_of_equal_logits_the_lowest_id_is_taken(device, poisoned) -> None:
    logits = torch.zeros(4, 3000, device=device)
    logits[0, [2500, 1400, 2600]] = 3
    logits[1, [900, 20]] = 3
    logits[2] = -0.0
    logits[2, 5:] = 0.0
    logits[3, 2999] = 1
    setting = [(0.0, 0, 1.0, 0.0)]
    tokens = triton.sample_rows(logits, make_params(setting, 4, 2999, device))
    assert tokens.tolist() == [1400, 20, 0, 0]
    first = make_params([(1.0, 1, 1.0, 0.0)], 4, 2999, device)
    assert triton.sample_rows(logits, first).tolist() == [1400, 20, 0, 0]
    few = make_params([(1.0, 0, 1e-6, 0.0)], 4, 2999, device)
    assert triton.sample_rows(logits, few).tolist() == [1400, 20, 0, 0]


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[6], (0.0, 0, 1.0, 0.0)])
def test_a_row_without_a_finite_largest_logit_has_no_token(setting, device, poisoned) -> None:
    logits = torch.randn(5, 1200, device=device)
    logits[0, 3] = torch.nan
    logits[1, 1100] = torch.inf
    logits[2] = -torch.inf
    logits[3, 1150] = torch.nan  # dead
    logits[4, 40] = torch.nan  # forbidden
    masks = torch.full((5, 38), -1, device=device).int()
    masks[4, 1] = 0
    params = make_params([setting], 5, 1110, device, masks)
    tokens = triton.sample_rows(logits, params)
    assert tokens[:3].tolist() == [-1, -1, -1]
    assert ((tokens[3:] >= 0) & (tokens[3:] < 1110)).all()
    assert not 32 <= int(tokens[4]) < 64
    masks[4] = 0
    assert int(triton.sample_rows(logits, replace(params, masks=masks))[4]) == -1


def test_the_number_is_the_engine_s() -> None:
    seeds = [0, 1, -1, 2**63 - 1, -(2**63), 123456789]
    places = [0, 1, 2**40 - 1, 77]
    for stream in random.Stream:
        counters = torch.tensor(places) + stream * 2**40
        for seed in seeds:
            got = reference.uniform(torch.full_like(counters, seed), counters).tolist()
            assert got == [random.uniform(seed, place, stream) for place in places]


def test_drafts_are_accepted_up_to_the_first_that_differs(device, poisoned) -> None:
    tokens = torch.tensor([5, 6, 7, 8, 1, 2, 3, 4], device=device)
    first_row = torch.tensor([0, 4, 6, 6, 7, 8], device=device).int()
    drafts = torch.tensor([[5, 6, 7], [9, 2, 0], [1, 1, 1], [4, 4, 4], [4, 0, 0]], device=device)
    num_drafts = torch.tensor([3, 1, 0, 0, 0], device=device).int()
    accepted, following = triton.accept_drafts(tokens, first_row, drafts, num_drafts)
    assert accepted.tolist() == [3, 0, 0, 0, 0]
    assert following.tolist() == [8, 1, -1, 3, 4]
    drafts[0, 1] = 0
    accepted, following = triton.accept_drafts(tokens, first_row, drafts, num_drafts)
    assert (accepted[0], following[0]) == (1, 6)
