"""`StepPlan` and `StepResult`: all that the scheduler and the workers say to each other.

A plan is plain data and the same for every rank. A worker keeps, per *slot*, the token ids and the
two page tables of one running request; a plan says how those change and which rows to compute.
Tokens that were just sampled are not in a plan: the worker that sampled them has them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mimo_engine.cache.encoder import EncodeTask
from mimo_engine.cache.pages import PageRun
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import MediaItem, TokenLogprobs

__all__ = ["Admission", "PageRun", "RowResult", "StepPlan", "StepResult", "StepRow"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Admission:
    """A request takes a free slot: for the first time, or again after a preemption.

    Whatever the slot held before is gone.
    """

    slot: int
    token_ids: tuple[int, ...]
    """Prompt, and after a preemption also the tokens sampled so far."""
    num_prompt_tokens: int
    params: SamplingParams
    sample_seed: int
    """Seed of its draws: params.seed, or one that the scheduler chose."""
    stop_ids: tuple[int, ...]
    """Ids that may not be sampled before min_tokens tokens have been."""
    media: tuple[MediaItem, ...] = ()
    """Whose rows stand at which positions of the prompt."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """One request's part in a step: the tokens at positions start ... start + num_tokens - 1, and
    behind them the first num_drafts of the drafts that its slot holds.

    Keys and values of all earlier positions are in its pages (sliding group: of the window).
    """

    slot: int
    start: int
    num_tokens: int
    samples: bool
    """True when the last of these tokens is the last one known: the next one is sampled."""
    full: PageRun
    """Pages to enter into the slot's full table before the step, over what stands there: a page
    that turned out to be a copy of a cached one is replaced by it."""
    sliding: PageRun
    """The same for the sliding table. Its entries that the window has passed mean nothing."""
    num_drafts: int = 0
    """Drafts to verify; 0 unless it samples."""
    num_proposals: int = 0
    """Drafts to make when tokens have been sampled, by as many draft layers; 0: none of them runs.
    The slot holds these from then on, and none where this is 0."""
    draft_start: int = 0
    """The first row that these draft layers compute, of those up to the last accepted one."""
    draft_visible_from: int = 0
    """Earlier rows have nothing of these draft layers in their pages, so none may see them."""

    @property
    def num_rows(self) -> int:
        return self.num_tokens + self.num_drafts


@dataclass(frozen=True, kw_only=True, slots=True)
class StepPlan:
    """Applied in this order: media forgotten and encoded, admissions, page runs, rows.

    A plan may have no rows: then only media are seen to.
    """

    admissions: tuple[Admission, ...]
    rows: tuple[StepRow, ...]
    """Ordered by a function of arrivals alone, so that every rank builds the same batch."""
    forget: tuple[bytes, ...] = ()
    """Content hashes of media whose features and encoded rows nobody needs any more."""
    encode: tuple[EncodeTask, ...] = ()
    """Units for later steps: no row of this plan reads them."""
    is_ahead: bool = False
    """Made before the result of the step before it was known, for the same slots. Each row begins
    at its slot's last token, wherever that is, `start` or up to `num_drafts` behind it."""

    @property
    def num_tokens(self) -> int:
        """Rows of the forward pass, drafts included."""
        return sum(row.num_rows for row in self.rows)


@dataclass(frozen=True, kw_only=True, slots=True)
class RowResult:
    """What the worker did for one StepRow."""

    token_ids: tuple[int, ...] = ()
    """Accepted drafts and one sampled token when the row samples. None otherwise, or when its
    grammar is not ready: then the row is to be computed again, with the drafts that it had."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One entry a sampled token, when params.logprobs asks."""
    error: str | None = None
    """Why this row has no tokens although it should: its request ends, the others go on."""
    prompt_logprobs: tuple[TokenLogprobs, ...] = ()
    """Entry j: the prompt token at position start + j + 1, given those before it; for the rows
    whose next token is a prompt token, when params.prompt_logprobs asks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepResult:
    """One RowResult a StepRow, in the plan's order."""

    rows: tuple[RowResult, ...] = field(default=())
    encode_errors: dict[bytes, str] = field(default_factory=dict)
    """Content hash -> why it cannot be encoded: the requests that need it end."""
