"""What runs next: `plan` makes a `StepPlan`, `apply` takes in its `StepResult`.

Continuous batching: every step holds one row for each running request, and prompts are computed in
chunks that fill the step's token budget (policy.py has the order and why decode comes first). When
pages run out, the youngest running request is preempted: it gives up its pages and is computed
again later, from what the prefix cache still has. The oldest request is never preempted while
another runs, and alone every request fits, so it always makes progress.

With drafts a running request has more rows in a step: its last token and the drafts that its slot
holds. They are planned last, from pages that nobody else has taken; budget for them is held back
from prompts, but for one token.

No clock, no randomness, no I/O: the same calls give the same plans. Between `plan` and `apply` the
workers read and write the pages of the planned requests, so nothing of theirs is given away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from mimo_engine.cache.encoder import EncoderCache
from mimo_engine.cache.manager import CacheManager
from mimo_engine.cache.prefix import PageChain, PrefixMatch, media_page_keys
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.errors import ContextLengthError, QueueFullError, RequestError
from mimo_engine.messages import EngineStats, NewRequest, TokenOutput
from mimo_engine.scheduler.ahead import plan_after
from mimo_engine.scheduler.encoding import EncodingQueue
from mimo_engine.scheduler.plan import Admission, StepPlan, StepResult, StepRow
from mimo_engine.scheduler.policy import derive_seed, longest_total, stop_ids
from mimo_engine.scheduler.request import Chunk, Request
from mimo_engine.scheduler.settling import Settler, failure

__all__ = ["Scheduler"]


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step at the workers."""

    plan: StepPlan
    requests: Sequence[Request]
    """One a row."""


class Scheduler:
    """Owns the requests and the cache's bookkeeping; knows nothing of devices.

    The cache must hold one request of max_model_len tokens.
    """

    def __init__(
        self,
        config: SchedulerConfig,
        cache: CacheManager,
        *,
        max_model_len: int,
        eos_token_ids: tuple[int, ...],
        seed: int,
        encoder: EncoderCache | None = None,
        max_encoder_tokens: int = 1024,
        recompute_boundary: bool = True,
    ) -> None:
        """recompute_boundary: draft layers compute rows again whose tokens were guessed."""
        assert cache.layout.longest_request(max_model_len) == max_model_len
        self._config = config
        self._cache = cache
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._seed = seed
        self._settler = Settler(cache, keeps_drafted=not recompute_boundary)
        self._depth = 0
        """Most drafts of a request, of the step that is planned."""
        self._requests: dict[str, Request] = {}
        self._running: list[Request] = []
        self._waiting: deque[Request] = deque()
        self._encoder = encoder or EncoderCache(0)
        self._encoding = EncodingQueue(
            self._encoder, self._num_hit_tokens, max_tokens=max_encoder_tokens
        )
        self._free_slots = list(range(config.max_num_seqs))  # a heap: the lowest goes first
        self._flights: deque[_Flight] = deque()
        """Steps at the workers, oldest first: one, or two when the second was foreseen."""
        self._blocked_head: Request | None = None
        """Head of the queue, found to lack full pages since when no request has left."""
        self._num_requests = 0
        self._num_arrivals = 0
        self._num_preemptions = 0
        self._prefix_query_tokens = 0
        self._prefix_hit_tokens = 0

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting or self._encoding or self._encoder.has_news)

    def add(self, new: NewRequest) -> None:
        """Queue a request.

        Raises RequestError, ContextLengthError or QueueFullError, and then nothing was changed.
        """
        num_prompt_tokens = len(new.prompt_token_ids)
        if not num_prompt_tokens:
            raise RequestError("the prompt is empty: give at least one token", param="prompt")
        if num_prompt_tokens >= self._max_model_len:
            raise ContextLengthError(
                f"the prompt has {num_prompt_tokens} tokens, which leaves no room for an answer "
                f"in the context of {self._max_model_len}: shorten it",
                param="prompt",
            )
        if new.request_id in self._requests:
            raise RequestError(f"request id {new.request_id!r} is in use", param="request_id")
        num_waiting = len(self._waiting) + len(self._encoding)
        if num_waiting >= self._config.max_queue_len:
            raise QueueFullError(
                f"{num_waiting} requests are waiting, which is --max-queue-len: try later"
            )
        self._encoder.check(new.media)
        params = new.params
        number = self._num_requests
        self._num_requests += 1
        page_size = self._cache.layout.page_size
        request = Request(
            request_id=new.request_id,
            chain=PageChain(new.prompt_token_ids, page_size, media_page_keys(new.media, page_size)),
            media=tuple(new.media),
            params=params,
            sample_seed=derive_seed(self._seed, number) if params.seed is None else params.seed,
            stop_ids=stop_ids(params, self._eos_token_ids),
            max_total_tokens=longest_total(
                num_prompt_tokens, params.max_tokens, self._max_model_len
            ),
        )
        self._requests[request.request_id] = request
        self._encoder.add(request.media)
        if request.media:
            self._encoding.append(request)
        else:
            self._enqueue(request)

    def _enqueue(self, request: Request) -> None:
        request.arrival = self._num_arrivals
        self._num_arrivals += 1
        self._waiting.append(request)

    def abort(self, request_id: str) -> bool:
        """End a request now; False when the id is unknown. It has no further output."""
        request = self._requests.get(request_id)
        if request is None:
            return False
        self._forget(request)
        if request.is_in_flight:
            request.is_aborted = True
        elif request.pages is not None:
            self._running.remove(request)
            self._release(request)
        elif not self._encoding.remove(request):
            self._waiting.remove(request)
        return True

    def _forget(self, request: Request) -> None:
        """The request has ended, or ends with the step that is in flight."""
        if self._requests.pop(request.request_id, None) is not None:
            self._encoder.release(request.media)

    @property
    def num_decoding(self) -> int:
        """Running requests that have nothing but their last token to compute."""
        return sum(
            request.pages is not None and len(request.token_ids) == request.pages.num_computed + 1
            for request in self._running
        )

    def plan(self, depth: int = 0) -> StepPlan | None:
        """The next step, or None when there is nothing to do. What is in flight must be applied
        before.

        depth: how many drafts of a request are verified at most, and as many are made.
        """
        assert not self._flights
        self._depth = depth
        for request in self._encoding.take_ready():
            self._enqueue(request)
        chunks: list[Chunk] = []
        held_back = sum(request.num_verified(depth) for request in self._running)
        budget, pages_ran_out = self._plan_running(chunks, held_back)
        admissions: list[Admission] = []
        while budget and not pages_ran_out and self._waiting and self._free_slots:
            if chunks and not chunks[-1].is_last:
                # A prompt is not through: the budget that it left is for drafts.
                break
            request = self._waiting[0]
            if not self._admit(request, admissions):
                if self._waiting and self._waiting[0] is request:
                    break
                # It went back to have its media encoded: the next one may be admitted.
                continue
            num_tokens, pages_ran_out = self._fit(request, max(1, budget - held_back))
            assert num_tokens
            chunks.append(Chunk(request, num_tokens))
            budget -= num_tokens
        self._plan_drafts(chunks, budget)
        requests = [chunk.request for chunk in chunks]
        rows = self._rows(chunks)
        encode = self._encoding.plan(nothing_else_runs=not (self._running or self._waiting))
        forget = self._encoder.take_forgotten()
        if not (rows or encode or forget):
            assert not self.has_work
            return None
        plan = StepPlan(
            admissions=tuple(admissions), rows=tuple(rows), forget=forget, encode=encode
        )
        self._keep(_Flight(plan, requests))
        return plan

    def _keep(self, flight: _Flight) -> None:
        """It is in flight from now on, and so are its rows: `apply` and `discard` will count them
        off again."""
        self._flights.append(flight)
        for request in flight.requests:
            request.num_in_flight += 1

    @property
    def may_foresee(self) -> bool:
        """Whether `plan_ahead` is worth asking: nothing else could begin with the step after that
        in flight. O(1)."""
        if len(self._flights) != 1:
            return False
        flight = self._flights[0]
        if flight.plan.encode or self._encoding or self._encoder.has_news:
            return False
        if self._waiting and self._free_slots and self._waiting[0] is not self._blocked_head:
            return False
        return len(flight.requests) == len(self._running)

    def plan_ahead(self) -> StepPlan | None:
        """The step after the one in flight, before its result is known; None where what comes
        depends on that, or something else could begin.

        It is for requests that decode, each with as many drafts as the step in flight makes for it.
        How many tokens that step brings is not known here: `start` of a row is the first position
        that it may have, and pages reach as far as any outcome can. A request that ends with the
        step in flight has computed its row in vain.
        """
        if not self.may_foresee:
            return None
        flight = self._flights[0]
        plan = plan_after(flight.plan, flight.requests, self._cache)
        if plan is not None:
            self._keep(_Flight(plan, flight.requests))
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> list[TokenOutput]:
        """Take in what the workers did with `plan`, the oldest in flight: one output a request that
        got tokens."""
        flight = self._flights.popleft()
        assert plan is flight.plan
        outputs: list[TokenOutput] = []
        some_left = False
        for request, row, done in zip(flight.requests, plan.rows, result.rows, strict=True):
            request.num_in_flight -= 1
            if not request.is_aborted:
                output = self._settler.settle(request, row, done)
                if output is None:
                    continue
                outputs.append(output)
                if output.finish_reason is None:
                    continue
                self._forget(request)
            # Its next row may be under way: then it is as if it had been aborted.
            request.is_aborted = True
            if not request.is_in_flight:
                self._release(request)
                some_left = True
        if some_left:
            self._running = [request for request in self._running if request.pages is not None]
        if self._settler.take_room():
            self._blocked_head = None
        self._encoder.apply(plan.encode, result.encode_errors)
        for request, error in self._encoding.take_failed() if result.encode_errors else ():
            self._forget(request)
            outputs.append(failure(request, error))
        return outputs

    def row_ids(self) -> list[str]:
        """Whose each row of the oldest step in flight is."""
        return [request.request_id for request in self._flights[0].requests]

    def discard(self) -> None:
        """A step failed, or was interrupted while it was planned or taken in: the results of all in
        flight are lost. Requests that run end without an output, those that wait go on waiting.

        An interrupt may come between any two lines, so nothing is given back by halves: pages and
        slots are as new, cached prefixes gone, and who stands in no queue has ended."""
        self._flights.clear()
        self._running = []
        self._cache.reset()
        self._free_slots = list(range(self._config.max_num_seqs))
        self._blocked_head = None
        waiting = {*self._waiting, *self._encoding}
        for request in list(self._requests.values()):
            request.pages = request.slot = None
            if request not in waiting:
                self._forget(request)

    def stats(self) -> EngineStats:
        """A snapshot. Pages used are those of live requests; idle cached ones can be had."""
        full, sliding = self._cache.full_usage(), self._cache.sliding_usage()
        return EngineStats(
            num_running=len(self._running),
            num_waiting=len(self._waiting) + len(self._encoding),
            num_preemptions=self._num_preemptions,
            full_pages_used=full.live,
            full_pages_total=full.total,
            sliding_pages_used=sliding.live,
            sliding_pages_total=sliding.total,
            prefix_query_tokens=self._prefix_query_tokens,
            prefix_hit_tokens=self._prefix_hit_tokens,
            encoded_tokens=self._encoder.num_encoded_rows,
            reused_media_tokens=self._encoder.num_reused_rows,
        )

    def _plan_running(self, chunks: list[Chunk], held_back: int) -> tuple[int, bool]:
        """Tokens of the running requests, oldest first; (budget left, whether pages ran out).

        held_back: budget that a prompt leaves to drafts.
        """
        budget = self._config.max_num_batched_tokens
        pages_ran_out = False
        running = self._running
        index = 0
        # Preemption shortens the list from its end, where no request has a chunk yet.
        while index < len(running):
            request = running[index]
            num_tokens, is_short = self._fit(request, max(1, budget - held_back))
            pages_ran_out |= is_short
            if num_tokens:
                chunks.append(Chunk(request, num_tokens))
                budget -= num_tokens
            elif index + 1 < len(running):
                self._preempt_youngest()
                continue
            # The youngest, when it finds no page, keeps those it has and sits this step out.
            index += 1
        return budget, pages_ran_out

    def _fit(self, request: Request, budget: int) -> tuple[int, bool]:
        """Extend by the next chunk, as far as pages go: (its tokens, whether pages were short)."""
        pages = request.pages
        assert pages is not None
        wanted = min(len(request.token_ids) - pages.num_computed, budget)
        if self._cache.extend(pages, wanted):
            return wanted, False
        num_tokens = self._cache.room(pages)
        assert num_tokens < wanted
        extended = self._cache.extend(pages, num_tokens)
        assert extended
        return num_tokens, True

    def _plan_drafts(self, chunks: Sequence[Chunk], budget: int) -> None:
        """Give the rows that are left, and their pages, to drafts: oldest request first."""
        for chunk in chunks:
            pages = chunk.request.pages
            assert pages is not None
            wanted = min(chunk.request.num_verified(self._depth), budget) if chunk.is_last else 0
            wanted = min(wanted, self._cache.room(pages) - chunk.num_tokens) if wanted else 0
            if wanted > 0:
                extended = self._cache.extend(pages, chunk.num_tokens + wanted)
                assert extended
                chunk.num_drafts = wanted
                budget -= wanted

    def _rows(self, chunks: Sequence[Chunk]) -> list[StepRow]:
        # A step can verify what its budget leaves beside a token of each request.
        room = max(0, self._config.max_num_batched_tokens - len(self._running))
        rows: list[StepRow] = []
        for chunk in chunks:
            rows.append(self._row(chunk, room))
            room -= rows[-1].num_proposals
        return rows

    def _row(self, chunk: Chunk, max_proposals: int) -> StepRow:
        request = chunk.request
        pages, slot = request.pages, request.slot
        assert pages is not None
        assert slot is not None
        full, sliding = self._cache.take_new_pages(pages)
        start = pages.num_computed
        end = start + chunk.num_tokens
        samples = chunk.is_last
        # This step brings one of the tokens left, and the last one needs no draft.
        most = min(self._depth, request.num_left - 2, max_proposals) if samples else 0
        num_proposals = max(0, most)
        draft_start = draft_visible_from = 0
        if num_proposals:
            draft_start, draft_visible_from = self._cache.draft_start(pages, end, num_proposals)
        return StepRow(
            slot=slot,
            start=start,
            num_tokens=chunk.num_tokens,
            samples=samples,
            full=full,
            sliding=sliding,
            num_drafts=chunk.num_drafts,
            num_proposals=num_proposals,
            draft_start=draft_start,
            draft_visible_from=draft_visible_from,
        )

    def _admit(self, request: Request, admissions: list[Admission]) -> bool:
        """Give the head of the queue a slot and what the prefix cache has; False: it must wait."""
        if request is self._blocked_head:
            return False
        num_tokens = len(request.token_ids)
        if self._running and not self._cache.can_start_sliding(num_tokens):
            return False
        match = self._match(request)
        num_hit_tokens = len(match.entries) * self._cache.layout.page_size
        if self._encoding.missing(request, num_hit_tokens):
            # The prefix cache had these tokens, and lost them.
            self._waiting.popleft()
            self._encoding.append(request)
            return False
        # Each running request will want one more page soon: without them, the newcomer would be
        # preempted as soon as the others grow.
        if self._running and not self._cache.can_start(
            num_tokens, match, spare_pages=len(self._running)
        ):
            self._blocked_head = request
            return False
        request.pages = self._cache.allocate(request.chain, match)
        request.slot = heappop(self._free_slots)
        self._running.append(self._waiting.popleft())
        if request.num_cached_tokens is None:
            request.num_cached_tokens = request.pages.num_computed
            if self._uses_prefix(request):
                self._prefix_query_tokens += num_tokens
                self._prefix_hit_tokens += request.num_cached_tokens
        if request.needs_every_prompt_row:
            request.prompt_logprobs = [None]
        admissions.append(
            Admission(
                slot=request.slot,
                token_ids=tuple(request.token_ids),
                num_prompt_tokens=request.num_prompt_tokens,
                params=request.params,
                sample_seed=request.sample_seed,
                stop_ids=request.stop_ids,
                media=request.media,
            )
        )
        return True

    def _uses_prefix(self, request: Request) -> bool:
        return self._cache.prefix_caching and not request.needs_every_prompt_row

    def _match(self, request: Request) -> PrefixMatch:
        """What the prefix cache has of a request that may use it."""
        return self._cache.find(request.chain) if self._uses_prefix(request) else PrefixMatch()

    def _num_hit_tokens(self, request: Request) -> int:
        return len(self._match(request).entries) * self._cache.layout.page_size

    def _preempt_youngest(self) -> None:
        """Back to the head of the queue, which keeps the queue in order of arrival."""
        request = self._running.pop()
        assert not request.is_in_flight
        assert not self._waiting or request.arrival < self._waiting[0].arrival
        self._release(request)
        self._waiting.appendleft(request)
        self._num_preemptions += 1

    def _release(self, request: Request) -> None:
        """Give back slot and pages. The head of the queue may try anew."""
        assert request.pages is not None
        assert request.slot is not None
        self._cache.free(request.pages)
        heappush(self._free_slots, request.slot)
        request.pages = request.slot = None
        request.num_drafts = 0
        self._blocked_head = None
