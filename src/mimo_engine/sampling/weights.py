"""Distributions as integers: what a token is drawn from, and the draw.

A drawn token depends on its own row of logits, its request and its place in the output, never on
what else is in the batch. Two things see to that: the random number is a hash of (seed, place)
(random.py), and probabilities are turned into integers before they are summed. Integers add
exactly, in whatever order a device adds them, so the cumulative sums that the random number is
compared with are the same in every batch shape.

With w_i = floor(2**44 * exp((x_i - max x) / temperature)) and the tokens in some fixed order, the
token drawn by u in (0, 1) is the first whose cumulative weight exceeds u times the total. A token
less likely than the best by more than 2**44 has weight 0, far under what float32 logits mean.

The filters keep a prefix of the tokens in falling order of logit (equal ones by id), each on what
the one before it left: min_p keeps w_i >= min_p * max w, top_k the first k, and top_p the shortest
prefix that reaches top_p of their sum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling.penalties import SamplingRow
from mimo_engine.sampling.random import Stream, uniform

__all__ = [
    "MAX_TOKENS",
    "draw",
    "invert",
    "numbers",
    "pick",
    "scaled",
    "softmax_weights",
    "target_weights",
]

_UNIT = 2**44
MAX_TOKENS = 2**18
"""Sums of that many weights stay below 2**62."""


def draw(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> list[int]:
    """One id for each row of adjusted `logits` [R, V], drawn by its own number of Stream.TOKEN."""
    token_ids = [-1] * len(rows)
    for indices, is_ordered in _routes(rows):
        some = [rows[i] for i in indices]
        weights, ids = _filtered(pick(logits, indices), some, is_ordered=is_ordered)
        places = invert(weights, numbers(some, Stream.TOKEN, like=logits))
        chosen = places if ids is None else ids.gather(1, places.unsqueeze(1)).squeeze(1)
        for i, token_id in zip(indices, chosen.tolist(), strict=True):
            token_ids[i] = token_id
    return token_ids


def target_weights(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """What `draw` draws from, in id order: weights [R, V] (int64) of adjusted `logits` [R, V]."""
    result = torch.empty(logits.shape, dtype=torch.int64, device=logits.device)
    for indices, is_ordered in _routes(rows):
        some = [rows[i] for i in indices]
        weights, ids = _filtered(pick(logits, indices), some, is_ordered=is_ordered)
        if ids is not None:
            weights = torch.empty_like(weights).scatter_(1, ids, weights)
        result[indices] = weights
    return result


def softmax_weights(logits: torch.Tensor, temperatures: Sequence[float]) -> torch.Tensor:
    """Weights [R, V] (int64) of `logits` [R, V] at a temperature each; a row's largest is 2**44."""
    logits = logits.double()
    peak = logits.amax(dim=-1, keepdim=True)
    return ((logits - peak) / _column(temperatures, logits)).exp_().mul_(_UNIT).long()


def scaled(probabilities: torch.Tensor) -> torch.Tensor:
    """Weights [R, V] (int64) in proportion to `probabilities` [R, V] >= 0 (float), 1 to 2**44."""
    return (probabilities.double() * _UNIT).long()


def invert(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Places [R] of the first of `weights` [R, V] (int64) whose cumulative sum exceeds u * total.

    u is the row's number in `draws` [R, 1] (float64).
    """
    cumulative = weights.cumsum(dim=-1)
    total = cumulative[:, -1:]
    # The product is rounded to float64, and may round up to the total itself.
    target = (draws * total).long().minimum(total - 1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def numbers(rows: Sequence[SamplingRow], stream: Stream, *, like: torch.Tensor) -> torch.Tensor:
    """The random number [R, 1] (float64) of each row, on the device of `like`."""
    return _column([uniform(row.seed, row.output_index, stream) for row in rows], like)


def pick(rows: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """The rows of `rows` [R, ...] at `indices`, rising: itself when that is all of them."""
    return rows if len(indices) == rows.shape[0] else rows[list(indices)]


def _routes(rows: Sequence[SamplingRow]) -> list[tuple[list[int], bool]]:
    """Indices of the rows that need no sort, and of those that do.

    The route of a row follows from its own parameters, so that its company cannot change it.
    """
    ordered = [i for i, row in enumerate(rows) if _needs_order(row.params)]
    whole = [i for i, row in enumerate(rows) if not _needs_order(row.params)]
    routes = [(whole, False), (ordered, True)]
    return [(indices, is_ordered) for indices, is_ordered in routes if indices]


def _needs_order(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0


def _filtered(
    logits: torch.Tensor, rows: Sequence[SamplingRow], *, is_ordered: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weights [R, V] (int64) under every filter, and the ids [R, V] they belong to (None: 0 ... V).

    Rows with top_k or top_p take one sort, and come in falling order of logit.
    """
    if not is_ordered:
        return _unordered(logits, rows), None
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    num_tokens = logits.shape[-1]
    weights = _unordered(values, rows)
    top_k = [row.params.top_k if row.params.top_k > 0 else num_tokens for row in rows]
    places = torch.arange(num_tokens, device=logits.device)
    weights.masked_fill_(places >= _column(top_k, logits), 0)
    cumulative = weights.cumsum(dim=-1)
    limit = cumulative[:, -1:] * _column([row.params.top_p for row in rows], logits)
    # A token stays while those before it do not reach the limit; the first always does.
    num_kept = ((cumulative - weights) < limit).sum(dim=-1, keepdim=True)
    return weights.masked_fill_(places >= num_kept, 0), ids


def _unordered(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Weights [R, V] (int64) after temperature and min_p; each row's largest is 2**44."""
    weights = softmax_weights(logits, [row.params.temperature for row in rows])
    min_p = [row.params.min_p for row in rows]
    if any(min_p):
        weights.masked_fill_(weights < _column(min_p, logits) * _UNIT, 0)
    return weights


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One float64 a row, [R, 1]."""
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)
