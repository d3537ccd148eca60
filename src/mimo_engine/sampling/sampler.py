"""From logits to tokens, one for each row. The distributions and the draws are in weights.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mimo_engine.sampling.logprobs import LogprobRow, check_finite, logprob_rows
from mimo_engine.sampling.penalties import SamplingRow, adjust
from mimo_engine.sampling.weights import MAX_TOKENS, draw, pick

__all__ = ["SamplingRow", "TokenChoice", "adjusted_rows", "choose", "sample", "with_logprobs"]


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
    live, adjusted = adjusted_rows(logits, rows, num_live_tokens=num_live_tokens, masks=masks)
    drawn = [i for i, row in enumerate(rows) if not row.params.is_greedy]
    return with_logprobs(live, rows, choose(adjusted, rows, drawn=drawn))


def adjusted_rows(
    logits: torch.Tensor,
    rows: Sequence[SamplingRow],
    *,
    num_live_tokens: int,
    masks: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The live part of `logits` [R, V], and the same after mask, bias, min_tokens and penalties.

    Both are [R, num_live_tokens] (float32), and may be one tensor.
    """
    assert logits.ndim == 2
    assert logits.shape[0] == len(rows)
    assert 0 < num_live_tokens <= min(logits.shape[1], MAX_TOKENS)
    live = logits[:, :num_live_tokens].float()
    allowed = live if masks is None else live.masked_fill(~_unpack(masks, live), -torch.inf)
    return live, adjust(allowed, rows)


def choose(
    adjusted: torch.Tensor, rows: Sequence[SamplingRow], *, drawn: Sequence[int]
) -> list[int]:
    """One id for each row of `adjusted` [R, V]: drawn for rows in `drawn`, the largest for others.

    FloatingPointError: a row without a finite maximum.
    """
    peaks, best = adjusted.max(dim=-1)
    check_finite(peaks.tolist())
    token_ids = best.tolist()
    if drawn:
        found = draw(pick(adjusted, drawn), [rows[i] for i in drawn])
        for i, token_id in zip(drawn, found, strict=True):
            token_ids[i] = token_id
    return token_ids


def with_logprobs(
    live: torch.Tensor, rows: Sequence[SamplingRow], token_ids: Sequence[int]
) -> list[TokenChoice]:
    """Row r of `live` [R, V] scores `token_ids[r]`, if its request asks for log-probabilities."""
    asking = [i for i, row in enumerate(rows) if row.params.logprobs is not None]
    scores: dict[int, LogprobRow] = {}
    if asking:
        found = logprob_rows(
            pick(live, asking),
            [token_ids[i] for i in asking],
            [rows[i].params.logprobs or 0 for i in asking],
            num_live_tokens=live.shape[1],
        )
        scores = dict(zip(asking, found, strict=True))
    return [TokenChoice(token_id, scores.get(i)) for i, token_id in enumerate(token_ids)]


def _unpack(masks: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bits of `masks` [R, W] as booleans in the shape of `like` [R, V]."""
    assert masks.dtype == torch.int32
    bits = torch.arange(32, dtype=torch.int32, device=masks.device)
    unpacked = (masks.unsqueeze(-1) >> bits) & 1
    return unpacked.flatten(1)[:, : like.shape[1]].bool()
