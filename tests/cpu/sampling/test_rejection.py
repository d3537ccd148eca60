"""Text with drafts has the distribution of text without.

Every test of that kind is one number: a chi-square statistic as a standard normal. Seeded bugs
show that it grows beyond all bounds when verification is wrong.
"""

import math
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from draft_laws import (
    CASES,
    DRAFTER,
    NUM_LIVE,
    RULES,
    as_normal,
    filtered,
    num_sequences,
    proposal,
    random_logits,
    sampling_row,
    target,
    verify_many,
)

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling import rejection
from mimo_engine.sampling.random import Stream
from mimo_engine.sampling.rejection import Drafts, draw_drafts, verify
from mimo_engine.sampling.sampler import SamplingRow
from mimo_engine.sampling.weights import numbers, scaled, softmax_weights

SOUND = 4.75
"""A standard normal is above it once in a million times."""
BROKEN = 9.0


def laws(case, rule, **options):
    """Of the 1st, 2nd and 3rd emitted token: how many there are, and how far from their law."""
    results = verify_many(case, rule, **options)
    found = []
    for place in range(3):
        counts = defaultdict(lambda: np.zeros(NUM_LIVE, dtype=int))
        for output, drafted, ids in results:
            if len(ids) > place:
                # What a point mass was does not matter to the first token: it is told apart.
                told = drafted[0] if rule == "point" and place == 0 else None
                counts[told, *output, *ids[:place]][ids[place]] += 1
        pairs = [(seen, target(case, rule, output)) for (_, *output), seen in counts.items()]
        found.append((sum(seen.sum() for seen, _ in pairs), as_normal(pairs)))
    return found


def deviation(case, rule, **options):
    return max(normal for _, normal in laws(case, rule, **options))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("rule", RULES)
def test_tokens_follow_the_target_distribution(rule, case):
    found = laws(case, rule)
    assert min(count for count, _ in found) >= num_sequences(case, rule) / 40
    assert max(normal for _, normal in found) < SOUND


def change_rows(monkeypatch, change):
    """Verification sees change(i, rows, masks) instead of row i and its mask."""
    original = rejection.adjusted_rows

    def changed(logits, rows, *, num_live_tokens, masks):
        pairs = [change(i, rows, masks) for i in range(len(rows))]
        masks = None if masks is None else torch.stack([mask for _, mask in pairs])
        rows = [row for row, _ in pairs]
        return original(logits, rows, num_live_tokens=num_live_tokens, masks=masks)

    monkeypatch.setattr(rejection, "adjusted_rows", changed)


def frozen_penalties(monkeypatch):
    change_rows(
        monkeypatch,
        lambda i, rows, masks: (replace(rows[i], token_ids=rows[i - i % 3].token_ids), None),
    )


def frozen_mask(monkeypatch):
    change_rows(monkeypatch, lambda i, rows, masks: (rows[i], masks[i - i % 3]))


def frozen_min_tokens(monkeypatch):
    change_rows(
        monkeypatch,
        lambda i, rows, masks: (replace(rows[i], output_index=rows[i - i % 3].output_index), None),
    )


def one_number_for_all_rows(monkeypatch):
    for name in ("choose", "_test"):
        original = getattr(rejection, name)

        def changed(adjusted, rows, *args, original=original, **kwargs):
            rows = [replace(row, output_index=1) for row in rows]
            return original(adjusted, rows, *args, **kwargs)

        monkeypatch.setattr(rejection, name, changed)


def bonus_of_the_row_before(monkeypatch):
    original = rejection.choose

    def changed(adjusted, rows, *, drawn):
        return original(adjusted.roll(1, 0), rows, drawn=drawn)

    monkeypatch.setattr(rejection, "choose", changed)


def accept_always(monkeypatch):
    monkeypatch.setattr(rejection, "_num_equal", lambda token_ids, draft_ids: len(draft_ids))


def accept_all_possible(monkeypatch):
    def changed(rows, stream, *, like):
        return numbers(rows, stream, like=like) * (stream is not Stream.ACCEPT)

    monkeypatch.setattr(rejection, "numbers", changed)


def residual_is_the_target(monkeypatch):
    monkeypatch.setattr(rejection, "_residual", lambda target, proposal: scaled(target))


def residual_of_right_tokens_and_wrong_shares(monkeypatch):
    monkeypatch.setattr(
        rejection, "_residual", lambda target, proposal: scaled(target * (proposal < target))
    )


def one_stream(monkeypatch):
    monkeypatch.setattr(
        rejection, "numbers", lambda rows, stream, *, like: numbers(rows, Stream.DRAFT, like=like)
    )


def target_without_filters(monkeypatch):
    monkeypatch.setattr(
        rejection,
        "target_weights",
        lambda logits, rows: softmax_weights(logits, [row.params.temperature for row in rows]),
    )


def target_without_temperature(monkeypatch):
    monkeypatch.setattr(
        rejection, "target_weights", lambda logits, rows: softmax_weights(logits, [1.0] * len(rows))
    )


BUGS = [
    *((rule, "repetition", frozen_penalties) for rule in RULES),
    *((rule, "counts", frozen_penalties) for rule in RULES),
    *((rule, "mask", frozen_mask) for rule in RULES),
    *((rule, "min_tokens", frozen_min_tokens) for rule in RULES),
    *((rule, "plain", bonus_of_the_row_before) for rule in RULES),
    ("point", "plain", one_number_for_all_rows),
    ("greedy", "plain", accept_always),
    ("point", "plain", accept_always),
    ("sampled", "plain", accept_always),
    ("sampled", "plain", accept_all_possible),
    ("sampled", "plain", residual_is_the_target),
    ("sampled", "plain", residual_of_right_tokens_and_wrong_shares),
    ("sampled", "plain", one_stream),
    ("sampled", "plain", target_without_temperature),
    ("sampled", "top_k", target_without_filters),
    ("sampled", "top_p", target_without_filters),
    ("sampled", "min_p", target_without_filters),
]


@pytest.mark.parametrize(
    ("rule", "case", "bug"), BUGS, ids=[f"{rule}-{case}-{bug.__name__}" for rule, case, bug in BUGS]
)
def test_a_seeded_bug_is_seen(monkeypatch, rule, case, bug):
    bug(monkeypatch)
    assert deviation(case, rule) > BROKEN


@pytest.mark.parametrize("case", ["plain", "top_k"])
def test_a_filtered_q_is_not_what_the_draft_was_drawn_from(case):
    def top_three(probabilities):
        kept = probabilities * (probabilities >= probabilities.topk(3).values[-1])
        return kept / kept.sum()

    assert deviation(case, "sampled", see=top_three) > BROKEN


@pytest.mark.parametrize("rule", ["point", "sampled"])
@pytest.mark.parametrize("case", ["plain", "filters", "mask"])
def test_drafts_are_accepted_as_often_as_theory_says(rule, case):
    results = verify_many(case, rule)
    for place in (0, 1):
        chances, num_accepted = [], 0
        for output, drafted, ids in results:
            if len(ids) > place:
                known = [*output, *drafted[:place]]
                p = target(case, rule, known)
                if rule == "sampled":
                    chances.append(np.minimum(p, proposal(case, known)).sum())
                else:
                    chances.append(p[drafted[place]])
                num_accepted += len(ids) > place + 1
        chances = np.array(chances)
        spread = math.sqrt((chances * (1 - chances)).sum())
        assert abs(num_accepted - chances.sum()) < 5 * spread


@pytest.mark.parametrize("temperature", [0.6, 1.0])
def test_drafts_follow_q(temperature):
    params = SamplingParams(temperature=temperature, top_k=2, logit_bias={3: 50.0})
    rows = [sampling_row(params, seed, [8]) for seed in range(20_000)]
    logits = DRAFTER[0][8]
    token_ids, probabilities = draw_drafts(
        logits.expand(len(rows), -1), rows, num_live_tokens=NUM_LIVE, sampled=True
    )
    q = filtered(logits[:NUM_LIVE].double().numpy(), SamplingParams(temperature=temperature))
    assert as_normal([(np.bincount(token_ids, minlength=NUM_LIVE), q)]) < SOUND
    for row in probabilities[:3]:
        torch.testing.assert_close(row, torch.from_numpy(q).float())


CHAIN = random_logits(30, 5, scale=1.2)[:, :5]
CHAIN_DRAFTER = CHAIN + random_logits(31, 5, scale=0.8)[:, :5]
CHAIN_LEN = 4


def generate(params, count, *, sampled, max_drafts=2):
    """`count` texts of CHAIN_LEN tokens from a Markov chain, round by round with 0 to 2 drafts."""
    generator = np.random.default_rng(6)
    texts = [[0] for _ in range(count)]

    def row(seed, text):
        return SamplingRow(
            params=params,
            seed=seed,
            output_index=len(text) - 1,
            token_ids=text,
            num_prompt_tokens=1,
            stop_ids=(),
        )

    while open_seeds := [i for i, text in enumerate(texts) if len(text) <= CHAIN_LEN]:
        longer = {seed: list(texts[seed]) for seed in open_seeds}
        proposals = {seed: [] for seed in open_seeds}
        nums = generator.integers(0, max_drafts + 1, len(open_seeds))
        for _ in range(max_drafts):
            rows = [row(seed, longer[seed]) for seed in open_seeds]
            last = [longer[seed][-1] for seed in open_seeds]
            ids, q = draw_drafts(CHAIN_DRAFTER[last], rows, num_live_tokens=5, sampled=sampled)
            for i, seed in enumerate(open_seeds):
                longer[seed].append(int(ids[i]))
                proposals[seed].append(q[i])
        rows, drafts = [], []
        for seed, num in zip(open_seeds, nums, strict=True):
            known = len(texts[seed])
            text, q = longer[seed][: known + num], proposals[seed][:num]
            rows += [row(seed, text[: known + i]) for i in range(num + 1)]
            drafts.append(Drafts(token_ids=text[known:], probabilities=q if sampled else None))
        logits = CHAIN[[row.token_ids[-1] for row in rows]]
        for seed, choices in zip(
            open_seeds, verify(logits, rows, drafts, num_live_tokens=5), strict=True
        ):
            texts[seed] += [choice.token_id for choice in choices]
    return [text[1 : CHAIN_LEN + 1] for text in texts]


def test_whole_texts_have_the_law_of_the_chain():
    """Draws for a place whose first drafts were thrown away use the same numbers once more."""
    params = SamplingParams(top_k=4)
    steps = np.stack([filtered(row.double().numpy(), params) for row in CHAIN])
    probs = np.ones(1)
    for place in range(CHAIN_LEN):
        last = np.arange(5**place) % 5
        probs = (probs[:, None] * steps[last]).ravel()
    texts = generate(params, 6000, sampled=True)
    places = [int("".join(map(str, text)), 5) for text in texts]
    assert as_normal([(np.bincount(places, minlength=5**CHAIN_LEN), probs)]) < SOUND


@pytest.mark.parametrize("params", [SamplingParams(top_p=0.9), SamplingParams(temperature=0)])
def test_whole_texts_are_the_same_with_and_without_point_masses(params):
    assert generate(params, 200, sampled=False) == generate(
        params, 200, sampled=False, max_drafts=0
    )
