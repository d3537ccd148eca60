"""A model of twelve tokens whose texts have a known law, and many texts of it verified at once.

The law is computed here token by token, from the definitions in config/sampling.py, in float64.
"""

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling.rejection import Drafts, draw_drafts, verify
from mimo_engine.sampling.sampler import SamplingRow

NUM_TOKENS = 14
NUM_LIVE = 12
PROMPT = [4, 4, 5]
STOP = 2
RULES = ["greedy", "point", "sampled"]


def random_logits(seed, *shape, scale):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(*shape, NUM_TOKENS, generator=generator) * scale
    logits[..., NUM_LIVE:] = 50.0
    return logits


# The model's logits after 1, 2 and 3 tokens of output, the first of which is given: [12, 14],
# [12, 12, 14], [12, 12, 12, 14]. A draft layer has something like them.
MODEL = [random_logits(k, *[NUM_LIVE] * (k + 1), scale=1.2) for k in range(3)]
for table in MODEL[1:]:
    # The last token likes to come again, so that its penalty matters.
    table[..., :NUM_LIVE] += 3.0 * torch.eye(NUM_LIVE)
DRAFTER = [MODEL[k] + random_logits(10 + k, *[NUM_LIVE] * (k + 1), scale=0.7) for k in range(2)]
MASKS = torch.rand(3, NUM_LIVE, NUM_LIVE, generator=torch.Generator().manual_seed(20)) < 0.6
MASKS[..., 0] = True  # no row without a token

CASES = {
    "plain": SamplingParams(temperature=0.8),
    "hot": SamplingParams(temperature=1.7),
    "top_k": SamplingParams(top_k=5),
    "top_p": SamplingParams(top_p=0.75),
    "min_p": SamplingParams(min_p=0.15),
    "filters": SamplingParams(temperature=1.3, min_p=0.03, top_k=8, top_p=0.9),
    "mask": SamplingParams(),
    "logit_bias": SamplingParams(logit_bias={1: 2.0, 4: -1.0, 9: -100.0}),
    "min_tokens": SamplingParams(min_tokens=2, logit_bias={STOP: 3.5}),
    "repetition": SamplingParams(repetition_penalty=1.9),
    "counts": SamplingParams(presence_penalty=0.9, frequency_penalty=1.1),
    "all": SamplingParams(
        temperature=1.2,
        top_k=9,
        top_p=0.95,
        repetition_penalty=1.3,
        frequency_penalty=0.5,
        logit_bias={6: 1.5},
    ),
}
# Penalties and bias work row by row.
SLOW = {"logit_bias", "min_tokens", "repetition", "counts", "all"}


def num_sequences(case, rule):
    return 360 if rule == "greedy" else 2000 if case in SLOW else 8000


def first_outputs(rule, count):
    """One for each sequence. A greedy one goes one way from each, so that it takes them all."""
    return [i % NUM_LIVE if rule == "greedy" else 8 for i in range(count)]


def params_of(case, rule):
    return replace(CASES[case], temperature=0.0) if rule == "greedy" else CASES[case]


def after(tables, output):
    """Logits [NUM_TOKENS] after the tokens of `output`."""
    return tables[len(output) - 1][tuple(output)]


def allowed_after(case, output):
    """Which ids [NUM_LIVE] the grammar allows after the tokens of `output`."""
    if case != "mask":
        return np.ones(NUM_LIVE, dtype=bool)
    return MASKS[len(output) - 1, output[-1]].numpy()


def target(case, rule, output):
    return _target(case, rule, tuple(output))


@cache
def _target(case, rule, output):
    """The distribution [NUM_LIVE] of the token after `output`, from SamplingParams alone."""
    params = params_of(case, rule)
    logits = after(MODEL, output)[:NUM_LIVE].double().numpy().copy()
    logits[~allowed_after(case, output)] = -np.inf
    for token, bias in params.logit_bias.items():
        logits[token] += bias
    if len(output) < params.min_tokens:
        logits[STOP] = -np.inf
    for token in {*PROMPT, *output}:
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token, count in Counter(output).items():
        logits[token] -= params.presence_penalty + params.frequency_penalty * count
    if params.is_greedy:
        return np.eye(NUM_LIVE)[logits.argmax()]
    return filtered(logits, params)


def filtered(logits, params):
    order = np.argsort(-logits, kind="stable")
    probs = np.exp((logits - logits.max()) / params.temperature)
    probs[probs < params.min_p * probs.max()] = 0.0
    if params.top_k > 0:
        probs[order[params.top_k :]] = 0.0
    probs /= probs.sum()
    before = np.cumsum(probs[order]) - probs[order]
    probs[order[before >= params.top_p]] = 0.0
    return probs / probs.sum()


def proposal(case, output):
    return _proposal(case, tuple(output))


@cache
def _proposal(case, output):
    logits = after(DRAFTER, output)[:NUM_LIVE].double().numpy()
    return filtered(logits, SamplingParams(temperature=CASES[case].temperature))


def sampling_row(params, seed, output):
    return SamplingRow(
        params=params,
        seed=seed,
        output_index=len(output),
        token_ids=[*PROMPT, *output],
        num_prompt_tokens=len(PROMPT),
        stop_ids=(STOP,),
    )


def point_drafts(case, rule, outputs):
    """Two draft ids each after `outputs`, drawn by other means: ids of every kind."""
    generator = np.random.default_rng(4)

    def draft(output):
        if generator.random() < 0.5:
            return int(target(case, rule, output).argmax())
        return int(generator.choice(NUM_LIVE, p=proposal(case, output)))

    firsts = [draft(output) for output in outputs]
    return [[first, draft([*output, first])] for output, first in zip(outputs, firsts, strict=True)]


def drawn_drafts(case, outputs):
    """Two draft ids each after `outputs`, and their q."""
    rows = [sampling_row(CASES[case], seed, output) for seed, output in enumerate(outputs)]
    options = {"num_live_tokens": NUM_LIVE, "sampled": True}
    start = torch.tensor(outputs).squeeze(1)
    first, first_q = draw_drafts(DRAFTER[0][start], rows, **options)
    rows = [replace(row, output_index=row.output_index + 1) for row in rows]
    second, second_q = draw_drafts(DRAFTER[1][start, first], rows, **options)
    ids = torch.stack([first, second], dim=1).tolist()
    return ids, [list(pair) for pair in zip(first_q, second_q, strict=True)]


def pack(bits):
    """Masks [R, 1] (int32) of `bits` [R, NUM_LIVE]."""
    return (torch.from_numpy(bits).long() << torch.arange(NUM_LIVE)).sum(-1, keepdim=True).int()


@cache
def batch(case, rule):
    """Many sequences: what each has put out, its two drafts, and the arguments of `verify`."""
    count = num_sequences(case, rule)
    outputs = [[token] for token in first_outputs(rule, count)]
    if rule == "sampled":
        drafted, proposals = drawn_drafts(case, outputs)
    else:
        drafted, proposals = point_drafts(case, rule, outputs), [None] * count
    drafts = [Drafts(token_ids=i, probabilities=q) for i, q in zip(drafted, proposals, strict=True)]
    longer = [
        [*output, *ids[:k]] for output, ids in zip(outputs, drafted, strict=True) for k in range(3)
    ]
    known = torch.tensor([output + ids for output, ids in zip(outputs, drafted, strict=True)])
    logits = torch.stack([MODEL[k][known[:, : k + 1].unbind(1)] for k in range(3)], dim=1)
    params = params_of(case, rule)
    rows = [sampling_row(params, i // 3, output) for i, output in enumerate(longer)]
    masks = None
    if case == "mask":
        masks = pack(np.stack([allowed_after(case, output) for output in longer]))
    return outputs, drafts, logits.flatten(0, 1), rows, masks


def verify_many(case, rule, *, see=None):
    """Of many sequences with two drafts each: output before, drafted ids, ids that come out.

    see: what verification is told of a draft's q.
    """
    outputs, drafts, logits, rows, masks = batch(case, rule)
    told = drafts
    if see is not None:
        told = [replace(d, probabilities=[see(q) for q in d.probabilities]) for d in drafts]
    results = verify(logits, rows, told, num_live_tokens=NUM_LIVE, masks=masks)
    emitted = [[choice.token_id for choice in choices] for choices in results]
    return list(zip(outputs, [draft.token_ids for draft in drafts], emitted, strict=True))


def as_normal(counts_and_probs):
    """A chi-square statistic over pairs of (counts [V], p [V]), as a standard normal.

    Tokens expected less than five times share a cell, and are left out if that too is small.
    Infinite: something without probability came. (Wilson and Hilferty's approximation.)
    """
    statistic, num_free = 0.0, 0
    for counts, probs in counts_and_probs:
        if counts[probs == 0].sum() > 0:
            return math.inf
        expected = probs * counts.sum()
        common = expected >= 5
        cells = [*zip(counts[common], expected[common], strict=True)]
        cells.append((counts[~common].sum(), expected[~common].sum()))
        cells = [(seen, mean) for seen, mean in cells if mean >= 5]
        statistic += sum((seen - mean) ** 2 / mean for seen, mean in cells)
        num_free += max(0, len(cells) - 1)
    if num_free == 0:
        return 0.0
    spread = 2 / (9 * num_free)
    return ((statistic / num_free) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)
