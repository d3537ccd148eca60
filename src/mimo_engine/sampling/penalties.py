"""What a request adds to its logits before anything is drawn: bias, minimum length, penalties.

`adjust` is the first half of the order that SamplingParams states. Most requests ask for none of
this, and then it costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mimo_engine.config.sampling import SamplingParams

__all__ = ["SamplingRow", "adjust"]


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingRow:
    """What the sampler must know of the request behind one row of logits."""

    params: SamplingParams
    seed: int
    output_index: int
    """Which output token is drawn, from 0."""
    token_ids: Sequence[int]
    """Prompt and output so far; read only when a penalty is set."""
    num_prompt_tokens: int
    stop_ids: tuple[int, ...]
    """Ids that may not be drawn before params.min_tokens tokens have been."""


def adjust(logits: torch.Tensor, rows: Sequence[SamplingRow]) -> torch.Tensor:
    """`logits` [R, V] after logit_bias, min_tokens and penalties; itself when no row asks.

    A repetition penalty p divides a positive logit by p and multiplies any other, for every id in
    prompt or output. Then output counts c subtract frequency_penalty * c, and presence_penalty
    where c > 0. (The definitions of vLLM and of the OpenAI API.)
    """
    assert logits.shape[0] == len(rows)
    biased = [i for i, row in enumerate(rows) if row.params.logit_bias]
    too_short = [i for i, row in enumerate(rows) if row.output_index < row.params.min_tokens]
    penalised = [i for i, row in enumerate(rows) if _has_penalty(row.params)]
    if not (biased or too_short or penalised):
        return logits
    logits = logits.clone()
    for i in biased:
        _add_bias(logits[i], rows[i])
    for i in too_short:
        # A stop id of the checkpoint may have no token behind it: it cannot be drawn anyway.
        ids = [stop for stop in rows[i].stop_ids if stop < logits.shape[1]]
        longer = logits[i].clone()
        longer[ids] = -torch.inf
        # A grammar that has come to its end leaves nothing else: then the output ends early.
        logits[i] = torch.where(longer.amax() == -torch.inf, logits[i], longer)
    for i in penalised:
        _penalise(logits[i], rows[i])
    return logits


def _has_penalty(params: SamplingParams) -> bool:
    return (
        params.repetition_penalty != 1.0
        or params.presence_penalty != 0.0
        or params.frequency_penalty != 0.0
    )


def _add_bias(logits: torch.Tensor, row: SamplingRow) -> None:
    """In place on one row [V]."""
    bias = row.params.logit_bias
    assert max(bias) < logits.shape[0], "ids in logit_bias are checked when a request is accepted"
    ids = torch.tensor(list(bias.keys()), device=logits.device)
    logits[ids] += torch.tensor(list(bias.values()), dtype=logits.dtype, device=logits.device)


def _penalise(logits: torch.Tensor, row: SamplingRow) -> None:
    """In place on one row [V]. Ids without a live row (from images, say) are passed over."""
    params = row.params
    tokens = torch.as_tensor(row.token_ids, dtype=torch.int64, device=logits.device)
    if params.repetition_penalty != 1.0:
        seen = _live(tokens, logits).unique()
        values = logits[seen]
        factor = params.repetition_penalty
        logits[seen] = torch.where(values > 0, values / factor, values * factor)
    output = _live(tokens[row.num_prompt_tokens :], logits)
    ids, counts = output.unique(return_counts=True)
    logits[ids] -= params.frequency_penalty * counts.to(logits.dtype) + params.presence_penalty


def _live(tokens: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return tokens[tokens < logits.shape[0]]
