"""The rules of scheduling that need no state: each a small pure function.

The order of service is the order of arrival, and the running requests are always older than every
waiting one: admission takes the oldest that waits, preemption the youngest that runs. It follows
that only the youngest running request can have more than one token to compute (the next one is
admitted only when its chunk was its last), so to walk the running requests in order of arrival is
to plan decode rows first and prefill after them, with at least one token of the budget left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

from mimo_engine.config.sampling import SamplingParams

__all__ = ["Accepted", "accept_tokens", "derive_seed", "longest_total", "stop_ids"]


@dataclass(frozen=True, slots=True)
class Accepted:
    """What the stop rules leave of freshly sampled tokens."""

    num_tokens: int
    """How many of them count; the last is the one that ends the request, if one does."""
    finish_reason: str | None = None
    stop_token_id: int | None = None


def accept_tokens(
    token_ids: Sequence[int],
    *,
    num_output_tokens: int,
    num_tokens_left: int,
    stop_ids: tuple[int, ...],
    min_tokens: int,
) -> Accepted:
    """Cut sampled tokens at the first that ends the request.

    num_output_tokens: tokens sampled before these. num_tokens_left: how many more may be, at least
    1. A stop id counts once min_tokens tokens stand before it; before that it is text (the sampler
    masks it, so it comes only when nothing else was possible).
    """
    for index, token_id in enumerate(token_ids):
        if token_id in stop_ids and num_output_tokens + index >= min_tokens:
            return Accepted(index + 1, "stop", token_id)
        if index + 1 == num_tokens_left:
            return Accepted(index + 1, "length")
    return Accepted(len(token_ids))


def stop_ids(params: SamplingParams, eos_token_ids: tuple[int, ...]) -> tuple[int, ...]:
    """The ids that end a request, each once."""
    eos = () if params.ignore_eos else eos_token_ids
    return tuple(dict.fromkeys((*eos, *params.stop_token_ids)))


def longest_total(num_prompt_tokens: int, max_tokens: int | None, max_model_len: int) -> int:
    """Prompt and output tokens at which a request has reached its length."""
    if max_tokens is None:
        return max_model_len
    return min(max_model_len, num_prompt_tokens + max_tokens)


def derive_seed(engine_seed: int, arrival: int) -> int:
    """A 63-bit seed for the request that arrived as number `arrival` and chose none."""
    digest = blake2b(f"{engine_seed}:{arrival}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
