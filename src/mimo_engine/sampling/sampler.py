"""From logits to tokens.

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
from dataclasses import dataclass

import torch

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.sampling.logprobs import LogprobRow, check_finite, logprob_rows
from mimo_engine.sampling.penalties import SamplingRow, adjust
from mimo_engine.sampling.random import uniform

__all__ = ["SamplingRow", "TokenChoice", "sample"]

_UNIT = 2**44
_MAX_TOKENS = 2**18  # sums of that many units stay below 2**62


@dataclass(frozen=True, slots=True)
class TokenChoice:
    """The token chosen for one row, and its log-probabilities when the request asks for them."""

    token_id: int
    logprobs: LogprobRow | None


def sample(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    *,
    num_live_tokens: int,
    masks: torch.Tensor | None = None,
) -> list[TokenChoice]:
    """Choose one token for each row of `logits` [R, V] (any float type; float32 inside).

    Ids from `num_live_tokens` on are never chosen. Greedy rows take the largest adjusted logit,
    the lowest id among equal ones. `masks` [R, W] (int32) allows token i of a row by bit i % 32 of
    word i // 32, before anything else is done; log-probabilities do not know of it.
    FloatingPointError: logits without a finite maximum.
    """
    assert logits.ndim == 2
    assert logits.shape[0] == len(rows)
    assert 0 < num_live_tokens <= min(logits.shape[1], _MAX_TOKENS)
    live = logits[:, :num_live_tokens].float()
    allowed = live if masks is None else live.masked_fill(~_unpack(masks, live), -torch.inf)
    adjusted = adjust(allowed, rows)
    peaks, best = adjusted.max(dim=-1)
    check_finite(peaks.tolist())
    token_ids = best.tolist()

    # The route of a row follows from its own parameters, so that its company cannot change it.
    drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    whole = [i for i in drawn if not _needs_order(rows[i].params)]
    ordered = [i for i in drawn if _needs_order(rows[i].params)]
    for indices, draw in ((whole, _draw), (ordered, _draw_ordered)):
        if indices:
            chosen = draw(_pick(adjusted, indices), [rows[i] for i in indices])
            for i, token_id in zip(indices, chosen.tolist(), strict=True):
                token_ids[i] = token_id
    return _with_logprobs(live, rows, token_ids)


def _unpack(masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bits of `masks` [R, W] as booleans in the shape of `like` [R, V]."""
    assert masks.dtype == torch.int32
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    unpacked = (masks.unsqueeze(-1) >> bits) & 1
    return unpacked.flatten(1)[:, : like.shape[1]].bool()


def _needs_order(params: SamplingParams) -> bool:
    return params.top_k > 0 or params.top_p < 1.0


def _pick(logits: torch.Tensor, indices: list[int]) -> torch.Tensor:
    return logits if len(indices) == logits.shape[0] else logits[indices]


def _draw(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Ids [R] drawn from `logits` [R, V] under temperature and min_p alone: no sort."""
    cumulative = _weights(logits, rows).cumsum(dim=-1)
    return _invert(cumulative, cumulative[:, -1:], rows)


def _draw_ordered(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Ids [R] drawn from `logits` [R, V] under every filter: one sort."""
    values, ids = logits.sort(dim=-1, descending=True, stable=True)
    num_tokens = logits.shape[-1]
    weights = _weights(values, rows)
    top_k = [row.params.top_k if row.params.top_k > 0 else num_tokens for row in rows]
    places = torch.arange(num_tokens, device=logits.device)
    weights.masked_fill_(places >= _column(top_k, logits), 0)
    cumulative = weights.cumsum(dim=-1)
    limit = cumulative[:, -1:] * _column([row.params.top_p for row in rows], logits)
    # A token stays while those before it do not reach the limit; the first always does.
    num_kept = ((cumulative - weights) < limit).sum(dim=-1, keepdim=True)
    total = cumulative.gather(1, num_kept - 1)
    places_drawn = _invert(cumulative, total, rows)
    return ids.gather(1, places_drawn.unsqueeze(1)).squeeze(1)


def _weights(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """Integer weights [R, V] (int64) after temperature and min_p; each row's largest is 2**44."""
    temperature = _column([row.params.temperature for row in rows], logits)
    logits = logits.double()
    peak = logits.amax(dim=-1, keepdim=True)
    weights = ((logits - peak) / temperature).exp_().mul_(_UNIT).long()
    min_p = [row.params.min_p for row in rows]
    if any(min_p):
        weights.masked_fill_(weights < _column(min_p, logits) * _UNIT, 0)
    return weights


def _invert(
    cumulative: torch.Tensor, total: torch.Tensor, rows: Sequence[SamplingRow]
) -> torch.Tensor:
    """Places [R] of the first weight in `cumulative` [R, V] (int64) that exceeds u * total."""
    draws = _column([uniform(row.seed, row.output_index) for row in rows], cumulative)
    # The product is rounded to float64, and may round up to the total itself.
    target = (draws * total).long().minimum(total - 1)
    return torch.searchsorted(cumulative, target, right=True).squeeze(1)


def _column(values: Sequence[float], like: torch.Tensor) -> torch.Tensor:
    """One float64 a row, [R, 1]."""
    return torch.tensor(values, dtype=torch.float64, device=like.device).unsqueeze(1)


def _with_logprobs(
    logits: torch.Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int]
) -> list[TokenChoice]:
    asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    scores: dict[int, LogprobRow] = {}
    if asking:
        found = logprob_rows(
            _pick(logits, asking),
            [token_ids[i] for i in asking],
            [rows[i].params.logprobs or 0 for i in asking],
            num_live_tokens=logits.shape[1],
        )
        scores = dict(zip(asking, found, strict=True))
    return [TokenChoice(token_id, scores.get(i)) for i, token_id in enumerate(token_ids)]
