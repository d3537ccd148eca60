"""One request inside the scheduler.

    ENCODING ──media there──> WAITING ──admitted──> RUNNING ──stop, length──> gone
        ^                      │   ^                   │
        └──lost its prefix hit─┘   └─────preempted─────┘     abort, from any state: gone

A request without media begins as waiting. A waiting request has no slot and no pages; a running one
has both. A preempted request keeps its tokens, its place in the order of arrival and its seed, so
that its text does not change. An abort while a plan with the request is at the workers takes effect
when the result is applied: until then its pages may be written.
"""

from __future__ import annotations

from dataclasses import dataclass

from mimo_engine.cache.manager import SequencePages
from mimo_engine.cache.prefix import PageChain
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import MediaItem, TokenLogprobs

__all__ = ["Chunk", "Request"]


class Request:
    """State of one request. Compared by identity."""

    __slots__ = (
        "arrival",
        "chain",
        "is_aborted",
        "max_total_tokens",
        "media",
        "num_cached_tokens",
        "num_drafts",
        "num_in_flight",
        "pages",
        "params",
        "prompt_logprobs",
        "request_id",
        "sample_seed",
        "slot",
        "stop_ids",
        "token_ids",
    )

    def __init__(
        self,
        *,
        request_id: str,
        chain: PageChain,
        media: tuple[MediaItem, ...],
        params: SamplingParams,
        sample_seed: int,
        stop_ids: tuple[int, ...],
        max_total_tokens: int,
    ) -> None:
        self.request_id = request_id
        self.arrival = -1
        """Requests are served in this order: that in which they came to wait for their turn."""
        self.media = media
        self.chain = chain
        self.token_ids = chain.token_ids
        """Prompt and sampled tokens: the chain's own list."""
        self.params = params
        self.sample_seed = sample_seed
        self.stop_ids = stop_ids
        self.max_total_tokens = max_total_tokens
        """Prompt and output, at most."""
        self.slot: int | None = None
        self.pages: SequencePages | None = None
        self.num_in_flight = 0
        """Rows of it at the workers, each of another step."""
        self.is_aborted = False
        self.num_drafts = 0
        """Drafts that its slot holds."""
        self.num_cached_tokens: int | None = None
        """Prompt tokens that came from the prefix cache at the first admission."""
        self.prompt_logprobs: list[TokenLogprobs | None] = [None]

    @property
    def is_in_flight(self) -> bool:
        return self.num_in_flight > 0

    @property
    def num_prompt_tokens(self) -> int:
        return self.chain.num_prompt_tokens

    @property
    def num_output_tokens(self) -> int:
        return len(self.token_ids) - self.chain.num_prompt_tokens

    @property
    def num_left(self) -> int:
        """Tokens that may still come."""
        return self.max_total_tokens - len(self.token_ids)

    def num_verified(self, depth: int) -> int:
        """Drafts that are worth a row in a step of this depth: the last one that can count has a
        token behind it."""
        return max(0, min(self.num_drafts, depth, self.num_left - 1))

    @property
    def needs_every_prompt_row(self) -> bool:
        """Prompt log-probabilities are asked for and not complete: no prefix hit is of use."""
        return self.params.prompt_logprobs is not None and self.num_output_tokens == 0


@dataclass(slots=True)
class Chunk:
    """What a running request computes in the step that is planned."""

    request: Request
    num_tokens: int
    num_drafts: int = 0

    @property
    def is_last(self) -> bool:
        """Whether all known tokens of the request are computed then."""
        pages = self.request.pages
        assert pages is not None
        return pages.num_computed + self.num_tokens == len(self.request.token_ids)
