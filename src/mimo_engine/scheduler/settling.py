"""What a step's result does to a request: its tokens, its pages, whether it has ended."""

from __future__ import annotations

from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.messages import TokenOutput
from mimo_engine.scheduler.plan import RowResult, StepRow
from mimo_engine.scheduler.policy import accept_tokens
from mimo_engine.scheduler.request import Request

__all__ = ["Settler", "failure"]


class Settler:
    """keeps_drafted: rows of the draft layers whose tokens were guessed are not computed again."""

    def __init__(self, cache: CacheManager, *, keeps_drafted: bool) -> None:
        self._cache = cache
        self._keeps_drafted = keeps_drafted
        self._made_room = False

    def take_room(self) -> bool:
        """Whether, since this was last asked, pages were given back or may be shared now: a request
        that lacked them may fit."""
        made_room, self._made_room = self._made_room, False
        return made_room

    def settle(self, request: Request, row: StepRow, done: RowResult) -> TokenOutput | None:
        """Append what was sampled, advance the pages, apply the stop rules; None: there is no token
        yet. The row no longer counts as in flight."""
        pages = request.pages
        assert pages is not None
        if done.error is not None:
            # Its pages were not advanced, so what was computed is never published.
            return failure(request, done.error)
        # Of a row that was planned ahead the plan does not know the start.
        start = pages.num_computed
        end = start + row.num_tokens
        if request.needs_every_prompt_row:
            last_prompt_row = min(end, request.num_prompt_tokens - 1)
            assert len(done.prompt_logprobs) == last_prompt_row - start
            request.prompt_logprobs.extend(done.prompt_logprobs)
        if not row.samples:
            assert not done.token_ids
            self._cache.advance(pages, end)
            return None
        if not done.token_ids:
            # Its grammar or its mask is still being made: the last row is computed again.
            self._cache.advance(pages, end - 1)
            self._roll_back(pages)
            return None
        num_output_tokens = request.num_output_tokens
        output = _append(request, done, num_output_tokens)
        # The last token has no K and V yet; rows past it were drafts that did not count.
        num_computed = len(request.token_ids) - 1
        self._cache.advance(pages, num_computed)
        if num_computed < end + row.num_drafts and not request.is_in_flight:
            self._roll_back(pages)
        self._take_in_drafts(request, pages, row, end)
        # With the first token a whole prompt is published, for others to share.
        self._made_room |= num_output_tokens == 0
        return output

    def _roll_back(self, pages: SequencePages) -> None:
        self._cache.roll_back(pages)
        self._made_room = True

    def _take_in_drafts(
        self, request: Request, pages: SequencePages, row: StepRow, end: int
    ) -> None:
        """The row, whose tokens ended before `end`, has more of them, so the slot holds the drafts
        that it was to make."""
        request.num_drafts = row.num_proposals
        if row.num_proposals:
            start, visible_from = self._cache.draft_start(pages, end, row.num_proposals)
            self._cache.set_drafted(
                pages, start, visible_from, row.num_proposals, is_kept=self._keeps_drafted
            )


def failure(request: Request, error: str) -> TokenOutput:
    """The last output of a request that cannot go on."""
    return TokenOutput(
        request_id=request.request_id, token_ids=[], finish_reason="error", error=error
    )


def _append(request: Request, done: RowResult, num_output_tokens: int) -> TokenOutput:
    """Take the sampled tokens, up to the one that ends the request, after so many others."""
    accepted = accept_tokens(
        done.token_ids,
        num_output_tokens=num_output_tokens,
        num_tokens_left=request.num_left,
        stop_ids=request.stop_ids,
        # Under a grammar a stop id comes early only when it has ended: nothing may follow.
        min_tokens=0 if request.params.grammar else request.params.min_tokens,
    )
    token_ids = list(done.token_ids[: accepted.num_tokens])
    request.token_ids.extend(token_ids)
    is_first = num_output_tokens == 0
    wants_logprobs = request.params.logprobs is not None
    wants_prompt_logprobs = is_first and request.params.prompt_logprobs is not None
    return TokenOutput(
        request_id=request.request_id,
        token_ids=token_ids,
        logprobs=list(done.logprobs[: accepted.num_tokens]) if wants_logprobs else None,
        prompt_logprobs=request.prompt_logprobs if wants_prompt_logprobs else None,
        finish_reason=accepted.finish_reason,
        stop_token_id=accepted.stop_token_id,
        num_cached_tokens=(request.num_cached_tokens or 0) if is_first else 0,
    )
