"""Every message between a client (server or `LLM`) and an engine, as frozen structs.

msgspec encodes them; within one process the same objects are passed as they are.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mimo_engine.config.sampling import SamplingParams

__all__ = [
    "Abort",
    "ArraySpec",
    "DraftStats",
    "EngineFailed",
    "EngineInfo",
    "EngineReply",
    "EngineRequest",
    "EngineStats",
    "MediaItem",
    "MediaSpan",
    "NewRequest",
    "StepOutputs",
    "TokenLogprobs",
    "TokenOutput",
]


class ArraySpec(msgspec.Struct, frozen=True, array_like=True):
    """One array in the shared memory of a media item (multimodal/shared_arrays.py)."""

    dtype: str
    """float32, or bfloat16, whose bits numpy holds as uint16."""
    shape: tuple[int, ...]
    offset: int
    """First byte, a multiple of the page size of the machine."""


class MediaSpan(msgspec.Struct, frozen=True, array_like=True):
    """Consecutive prompt positions whose embeddings are consecutive rows of a media item."""

    start: int
    num_tokens: int
    first_row: int


class MediaItem(msgspec.Struct, frozen=True, kw_only=True):
    """One image, one video's pictures or one clip of sound, as features.

    It is encoded in units, each alone: a grid step of the vision tower (an image has one), or a
    segment of the audio tokenizer. Unit u makes rows u * unit_rows ... of the item; the last unit
    may be shorter.
    """

    kind: Literal["vision", "audio"]
    content_hash: bytes
    """16 bytes that decide the rows: of features, kind, grid and what else the towers read."""
    num_rows: int
    unit_rows: int
    spans: list[MediaSpan]
    """In order of position, disjoint, rows rising; rows beyond them are never used."""
    arrays: list[ArraySpec]
    """vision: one, patches [t * h * w, patch_dim]. audio: log-mel [frames, mels] a unit."""
    grid: tuple[int, int, int] | None = None
    """vision: (t, h, w) in patches."""

    @property
    def num_units(self) -> int:
        return -(-self.num_rows // self.unit_rows)


class NewRequest(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Start a request. `params.n` is 1 here: the client expands n into n requests.

    The features of `media` travel beside it, as one memory file an item.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    media: list[MediaItem] = []


class Abort(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """End a request early; unknown ids are ignored (it may just have finished)."""

    request_id: str


EngineRequest = NewRequest | Abort


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Log-probabilities (natural log) at one position, of the model's own distribution.

    Nothing in it is mutable, so that Python's garbage collector, which stops everything, need not
    walk through those of a long prompt.
    """

    token_id: int
    logprob: float
    rank: int
    """1 for the most likely token."""
    top: tuple[tuple[int, float], ...]
    """The most likely (token id, logprob), best first; as many as were asked for."""


class TokenOutput(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What one step did for one request."""

    request_id: str
    token_ids: list[int]
    """New tokens, a final stop token included."""
    logprobs: list[TokenLogprobs] | None = None
    """One entry a new token, when asked for."""
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    """Sent once, with the first token; entry 0 is None (nothing precedes the first token)."""
    finish_reason: str | None = None
    """None while it runs; then stop, length, abort or error."""
    stop_token_id: int | None = None
    """The id that ended it, when finish_reason is stop."""
    num_cached_tokens: int = 0
    """Prompt tokens that came from the prefix cache."""
    error: str | None = None
    """Why, when finish_reason is error."""
    error_kind: Literal["queue_full", "context_length", "request"] | None = None
    """Which exception of errors.py `error` was, when the engine refused the request."""
    error_param: str | None = None
    """The field at fault, when there is one."""


class DraftStats(msgspec.Struct, frozen=True, kw_only=True):
    """What speculative decoding does at present; counters only grow."""

    depth: int
    """Drafts of a request in the last step."""
    acceptance_length: float
    """Tokens that a verification yields, 1 to 1 + depth."""
    gain: float | None
    """Tokens a second expected at this depth, as a multiple of those without drafts; None: the
    depth is fixed, and steps without drafts were never timed."""
    num_verifications: int
    """Steps of a request in which drafts were verified."""
    num_drafted: int
    """Drafts that were verified, those behind an output's end left out."""
    num_tested: list[int]
    """By draft layer: drafts of an output that were right or wrong, those before them right."""
    num_right: list[int]
    """By draft layer: of these, the right ones."""

    @property
    def num_accepted(self) -> int:
        """Drafts that are in an output."""
        return sum(self.num_right)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot for /metrics. Counters only grow."""

    num_running: int = 0
    num_waiting: int = 0
    num_preemptions: int = 0
    full_pages_used: int = 0
    full_pages_total: int = 0
    sliding_pages_used: int = 0
    sliding_pages_total: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    encoded_tokens: int = 0
    """Media tokens that the towers made."""
    reused_media_tokens: int = 0
    """Media tokens that were encoded for an earlier request."""
    drafts: DraftStats | None = None
    """None: nothing is drafted."""


class StepOutputs(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """All that one engine step has for its clients."""

    outputs: list[TokenOutput]
    stats: EngineStats


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Sent once, when the engine is ready to take requests."""

    max_model_len: int
    vocab_size: int
    num_full_pages: int
    num_sliding_pages: int
    page_size: int
    feature_dtype: str | None = None
    """dtype of vision features; None: text alone is served."""


class EngineFailed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The last words of an engine that could not start or go on. Its process ends after them."""

    message: str


EngineReply = StepOutputs | EngineInfo | EngineFailed
