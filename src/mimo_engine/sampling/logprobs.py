"""Log-probabilities of chosen tokens, and of the most likely ones, from the model's own logits.

They are of the distribution before bias, penalties and temperature. Equal values are ordered by
token id, so that a list is a function of the logits and not of a device's sorting network.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

__all__ = ["LogprobRow", "check_finite", "logprob_rows"]

# Rows scored together: bounds the scratch memory at the full vocabulary (64 rows: 0.2 GB).
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class LogprobRow:
    """Log-probabilities (natural log) at one position. The fields are messages.TokenLogprobs's."""

    token_id: int
    logprob: float
    rank: int
    """1 + the number of tokens with a strictly greater log-probability."""
    top: list[tuple[int, float]]
    """The most likely (token id, logprob), best first, equal ones by id."""


def logprob_rows(
    logits: torch.Tensor,
    token_ids: Sequence[int],
    num_top: Sequence[int],
    *,
    num_live_tokens: int,
) -> list[LogprobRow]:
    """Row r of `logits` [R, V] scores `token_ids[r]` and lists its `num_top[r]` most likely tokens.

    Ids from `num_live_tokens` on have no token behind them: they take no probability, and asking
    for one is the caller's mistake. FloatingPointError: a row without a largest finite logit.
    """
    assert logits.shape[0] == len(token_ids) == len(num_top)
    assert all(0 <= token_id < num_live_tokens for token_id in token_ids)
    results: list[LogprobRow] = []
    for first in range(0, len(token_ids), _ROWS_AT_ONCE):
        part = slice(first, first + _ROWS_AT_ONCE)
        live = logits[part, :num_live_tokens].float()
        check_finite(live.amax(dim=-1).tolist(), first_row=first)
        results += _score(live.log_softmax(dim=-1), token_ids[part], num_top[part])
    return results


def check_finite(peaks: Sequence[float], *, first_row: int = 0) -> None:
    """FloatingPointError unless the largest logit of every row is finite.

    NaN is larger than anything to torch, so that this one number shows NaN and infinity anywhere
    in the row, and a row that forbids every token.
    """
    for row, peak in enumerate(peaks, start=first_row):
        if not math.isfinite(peak):
            raise FloatingPointError(
                f"row {row} of the logits has {peak} for its maximum, so no token can be chosen: "
                "the forward pass overflowed or the weights are damaged. "
                "Run `mimo-engine check` on the checkpoint and try --dtype float32"
            )


def _score(
    logprobs: torch.Tensor, token_ids: Sequence[int], num_top: Sequence[int]
) -> list[LogprobRow]:
    targets = torch.tensor(token_ids, device=logprobs.device).unsqueeze(1)
    own = logprobs.gather(1, targets)
    ranks = (logprobs > own).sum(dim=-1) + 1
    top = _top_ids(logprobs, max(num_top))
    top_values = logprobs.gather(1, top).tolist()
    columns = zip(
        token_ids, own.squeeze(1).tolist(), ranks.tolist(), top.tolist(), top_values, strict=True
    )
    return [
        LogprobRow(token_id, logprob, rank, list(zip(ids, values, strict=True))[:count])
        for (token_id, logprob, rank, ids, values), count in zip(columns, num_top, strict=True)
    ]


def _top_ids(values: torch.Tensor, k: int) -> torch.Tensor:
    """Ids [R, k] of the largest of `values` [R, V] (float32), best first, equal ones by id.

    topk leaves the order of equal values open, so it is given distinct keys: the high half orders
    as the float does, the low half falls with the id.
    """
    num_tokens = values.shape[-1]
    # Adding zero makes -0.0 the same bits as 0.0.
    bits = (values + 0.0).contiguous().view(torch.int32).long()
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits)
    ids = torch.arange(num_tokens, device=values.device)
    keys = ordered * 2**32 + (num_tokens - 1 - ids)
    return keys.topk(min(k, num_tokens), dim=-1).indices
