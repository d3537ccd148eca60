"""Drafted tokens are accepted or replaced so that the text keeps the model's own distribution.

p is what a row's token would be drawn from without drafts (weights.py), q what a draft d was drawn
from. Which rule a sequence follows is said by its drafts:

- Point masses (d is the best token of a draft layer), or a greedy request: the row's token is
  drawn as without drafts, by the same random number, and d is accepted if it is that token. So d is
  accepted with probability p(d), what replaces it is distributed as p without d, and a seeded
  request has the same text with drafts as without.
- Drafts with q (Leviathan, Kalman, Matias 2023, "Fast inference from transformers via speculative
  decoding"): d is accepted if u * q(d) < p(d), and replaced by a draw from (p - q)+, normalised.
  More drafts pass, sum(min(p, q)) of them, and the text depends on which rows had a draft: it has
  the right distribution, but another one of its members than without drafts.

A row's own p need not know how q came about: filters, penalties and masks belong to p alone, and a
draft that they forbid is never accepted.

Drafts with q bind the caller: how many drafts are verified may depend on the text so far, but not
on those drafts, nor on earlier ones that were thrown away untested (their random numbers come
again). To leave out a draft that looks unlikely, or that a grammar forbids, would favour the
others. What follows a draft that cannot pass may be left out.

Probabilities are integers over their sum, as in weights.py; everything else is elementwise in
float64, so that no row can feel its company.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch

from mimo_engine.sampling.penalties import SamplingRow
from mimo_engine.sampling.random import Stream
from mimo_engine.sampling.sampler import TokenChoice, adjusted_rows, choose, with_logprobs
from mimo_engine.sampling.weights import (
    invert,
    numbers,
    pick,
    scaled,
    softmax_weights,
    target_weights,
)

__all__ = ["Drafts", "draw_drafts", "verify"]

# Elements of [R, V] tested together: bounds the scratch memory (128 MiB a tensor, some six of them)
_ELEMENTS_AT_ONCE = 2**24


@dataclass(frozen=True, kw_only=True, slots=True)
class Drafts:
    """The guesses d_1 ... d_n at the next tokens of one sequence, n >= 0."""

    token_ids: Sequence[int]
    probabilities: Sequence[torch.Tensor] | None = None
    """Of each draft, the q [num_live_tokens] (float) that it was drawn from, as `draw_drafts` gave
    it: not computed anew, and not filtered. None: point masses, as greedy requests always have."""


def draw_drafts(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    *,
    num_live_tokens: int,
    sampled: bool,
) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    """One draft for each row of a draft layer's `logits` [R, V]: ids [R] (int64), and their q.

    `sampled`, and a request that is not greedy: drawn from q = softmax(logits / temperature), a
    [num_live_tokens] (float32). Otherwise the largest logit, the lowest id among equal ones, and
    None. A row's output_index is that of the output token which the draft guesses; its token_ids
    are not read. Logits that are not finite give a poor draft and nothing worse.
    """
    assert logits.shape[0] == len(rows)
    live = logits[:, :num_live_tokens].float().nan_to_num()
    token_ids = live.max(dim=-1).indices
    probabilities: list[torch.Tensor | None] = [None] * len(rows)
    drawn = [i for i, row in enumerate(rows) if sampled and not row.params.is_greedy]
    if drawn:
        some = [rows[i] for i in drawn]
        weights = softmax_weights(pick(live, drawn), [row.params.temperature for row in some])
        # Rounded first and then drawn from, so that this is the very q that the test will see.
        proposal = _normalised(weights).float()
        token_ids[drawn] = invert(scaled(proposal), numbers(some, Stream.DRAFT, like=live))
        for i, row in zip(drawn, proposal, strict=True):
            probabilities[i] = row
    return token_ids, probabilities


def verify(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    drafts: Sequence[Drafts],
    *,
    num_live_tokens: int,
    masks: torch.Tensor | None = None,
) -> list[list[TokenChoice]]:
    """Of each sequence, the drafts that pass, in order, and one token more: 1 ... n + 1 choices.

    `logits` [R, V] holds 1 + n rows of each sequence, end to end: row i predicts the token that
    draft d_(i+1) guesses, row n the token after the last. `rows` and `masks` [R, W] (as in
    `sample`) belong to them; those of row i are made as if d_1 ... d_i were accepted, so that
    row i's token_ids end with them and its output_index is i higher than row 0's. Rows after a
    draft that cannot pass may hold anything that has a finite maximum.
    FloatingPointError: a row without one.
    """
    firsts = list(accumulate((1 + len(draft.token_ids) for draft in drafts), initial=0))
    assert firsts[-1] == len(rows)
    live, adjusted = adjusted_rows(logits, rows, num_live_tokens=num_live_tokens, masks=masks)
    tests = {
        first + i: (token_id, q)
        for first, draft in zip(firsts, drafts, strict=False)
        if draft.probabilities is not None
        for i, (token_id, q) in enumerate(zip(draft.token_ids, draft.probabilities, strict=True))
    }
    drawn = [i for i, row in enumerate(rows) if i not in tests and not row.params.is_greedy]
    token_ids = choose(adjusted, rows, drawn=drawn)
    tested = list(tests)
    step = max(1, _ELEMENTS_AT_ONCE // num_live_tokens)
    for part in (tested[start : start + step] for start in range(0, len(tested), step)):
        ids, proposals = zip(*(tests[i] for i in part), strict=True)
        found = _test(pick(adjusted, part), [rows[i] for i in part], ids, torch.stack(proposals))
        for i, token_id in zip(part, found, strict=True):
            token_ids[i] = token_id

    # Every row has its token now; those that follow a draft which differs are of no use.
    kept = [
        range(first, first + 1 + _num_equal(token_ids[first:end], draft.token_ids))
        for (first, end), draft in zip(pairwise(firsts), drafts, strict=True)
    ]
    used = [i for part in kept for i in part]
    choices = with_logprobs(pick(live, used), [rows[i] for i in used], [token_ids[i] for i in used])
    remaining = iter(choices)
    return [[next(remaining) for _ in part] for part in kept]


def _test(
    adjusted: torch.Tensor,
    rows: Sequence[SamplingRow],
    draft_ids: Sequence[int],
    proposals: torch.Tensor,
) -> list[int]:
    """A row's draft, if accepted, or what replaces it. `adjusted`, `proposals`: [R, V] (float)."""
    assert proposals.shape == adjusted.shape
    assert not any(row.params.is_greedy for row in rows), "drafts of greedy requests are not drawn"
    assert all(0 <= token_id < adjusted.shape[1] for token_id in draft_ids)
    target = _normalised(target_weights(adjusted, rows))
    proposal = _normalised(scaled(proposals))
    drafted = torch.tensor(draft_ids, device=adjusted.device).unsqueeze(1)
    u = numbers(rows, Stream.ACCEPT, like=adjusted)
    is_accepted = u * proposal.gather(1, drafted) < target.gather(1, drafted)
    instead = invert(_residual(target, proposal), numbers(rows, Stream.RESIDUAL, like=adjusted))
    return torch.where(is_accepted, drafted, instead.unsqueeze(1)).squeeze(1).tolist()


def _residual(target: torch.Tensor, proposal: torch.Tensor) -> torch.Tensor:
    """Weights [R, V] (int64) in proportion to (target - proposal)+, of float64 [R, V].

    Nothing may be left of a row: then the two agree to float64's last bits, which refuses a draft
    once in 2**50 tests or more rarely, and the target itself stands in. Its error is of that size,
    and it has no token that the target forbids.
    """
    excess = (target - proposal).clamp_(min=0)
    peak = excess.amax(dim=-1, keepdim=True)
    return scaled(torch.where(peak > 0, excess / peak, target))


def _normalised(weights: torch.Tensor) -> torch.Tensor:
    """Probabilities [R, V] (float64) of `weights` [R, V] (int64)."""
    return weights.double() / weights.sum(dim=-1, keepdim=True)


def _num_equal(token_ids: Sequence[int], draft_ids: Sequence[int]) -> int:
    """How many of the first tokens are the drafts'."""
    pairs = zip(token_ids, draft_ids, strict=False)
    return next((i for i, (token, draft) in enumerate(pairs) if token != draft), len(draft_ids))
