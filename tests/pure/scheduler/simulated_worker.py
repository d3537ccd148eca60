"""A worker that is only a memory and a tape of tokens.

It keeps what a plan tells it (tokens, two page tables a slot) and, for each page, a digest of the
tokens up to each position that was written there. Before a step every earlier position that a row
may see must hold the right digest, and after it the step's own as well. The token it samples is a
function of the digest and the request's seed, so the text of every request is known in advance,
whatever was batched, preempted, cached, drafted or aborted around it.

Drafts are right or wrong at random. What the draft layers would write and see is in draft_rows.py.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from draft_rows import DraftRows, Pass, digests_of

from mimo_engine.cache.encoder import EncoderCache
from mimo_engine.cache.groups import CacheLayout
from mimo_engine.cache.manager import CacheManager
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import NewRequest, TokenLogprobs
from mimo_engine.scheduler.plan import Admission, RowResult, StepPlan, StepResult, StepRow
from mimo_engine.scheduler.scheduler import Scheduler

__all__ = ["EOS", "VOCAB_SIZE", "Luck", "Setup", "Slot", "Worker", "expected_output", "sample"]

VOCAB_SIZE = 12
EOS = (10, 11)


@dataclass(frozen=True, kw_only=True)
class Setup:
    page_size: int
    num_full_pages: int
    num_sliding_pages: int
    window: int | None
    max_num_seqs: int
    max_num_batched_tokens: int
    max_model_len: int
    prefix_caching: bool
    num_draft_layers: int = 0
    recompute_boundary: bool = True

    def scheduler(
        self,
        cache_class: type[CacheManager] = CacheManager,
        *,
        encoder: EncoderCache | None = None,
        max_encoder_tokens: int = 1024,
    ) -> tuple[Scheduler, CacheManager]:
        layout = CacheLayout(
            page_size=self.page_size,
            num_full_pages=self.num_full_pages,
            num_sliding_pages=self.num_sliding_pages,
            window=self.window,
        )
        cache = cache_class(layout, self.prefix_caching, has_drafts=self.num_draft_layers > 0)
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens
        )
        scheduler = Scheduler(
            config,
            cache,
            max_model_len=self.max_model_len,
            eos_token_ids=EOS,
            seed=7,
            encoder=encoder,
            max_encoder_tokens=max_encoder_tokens,
            recompute_boundary=self.recompute_boundary,
        )
        return scheduler, cache


def sample(digest: int, seed: int, num_output: int, params: SamplingParams, stop_ids) -> int:
    token_id = hash((digest, seed)) % VOCAB_SIZE
    while num_output < params.min_tokens and token_id in stop_ids:
        token_id = (token_id + 1) % VOCAB_SIZE
    return token_id


def expected_output(new: NewRequest, setup: Setup) -> list[int]:
    """The request's text, by a loop that knows of nothing else."""
    params, tokens, output = new.params, list(new.prompt_token_ids), []
    stop_ids = (() if params.ignore_eos else EOS) + params.stop_token_ids
    digest = digests_of(tokens)[-1]
    while True:
        assert params.seed is not None
        token_id = sample(digest, params.seed, len(output), params, stop_ids)
        output.append(token_id)
        digest = hash((digest, token_id))
        if token_id in stop_ids and len(output) > params.min_tokens:
            return output
        if len(output) == params.max_tokens or len(tokens) + len(output) == setup.max_model_len:
            return output


@dataclass
class Slot:
    admission: Admission
    token_ids: list[int]
    drafts: list[int] = field(default_factory=list)
    full: dict[int, int] = field(default_factory=dict)
    sliding: dict[int, int] = field(default_factory=dict)
    num_cached: int | None = None
    """Rows before its first one."""
    drafted_to: int = 0
    """Where the next pass of the draft layers begins, if it goes on where the last one ended."""
    drafted_from: int = 0


@dataclass(kw_only=True)
class Luck:
    """How often what happens, as shares of the rows that sample."""

    drafts_right: float = 0.7
    fewer_verified: float = 0.0
    """A grammar ends behind a draft."""
    late: float = 0.0
    broken: float = 0.0


class Worker:
    def __init__(self, setup: Setup, *, luck: Luck | None = None, seed: int = 0) -> None:
        self.setup = setup
        self.luck = luck or Luck()
        self.rng = random.Random(seed)
        self.slots: dict[int, Slot] = {}
        self.full: dict[tuple[int, int], int] = {}
        self.sliding: dict[tuple[int, int], int] = {}
        self.writers: dict[tuple[int, int], Slot] = {}
        """Who computed what stands in `sliding`."""
        self.published: tuple[frozenset[int], frozenset[int]] = frozenset(), frozenset()
        """(full, sliding) pages that nobody may write to in the next step."""
        self.ring: dict[tuple[int, int], int] = {}
        """By slot and place: hidden states of the target, as worker/drafting.py keeps them."""
        self.ring_len = (setup.window or 0) + 1 + setup.num_draft_layers
        self.draft_rows = DraftRows(
            page_size=setup.page_size,
            window=setup.window or 1,
            keeps_guessed=not setup.recompute_boundary,
        )
        self.num_drafts = self.num_accepted = 0

    def run(self, plan: StepPlan) -> StepResult:
        for admission in plan.admissions:
            self.slots[admission.slot] = Slot(admission, list(admission.token_ids))
        rows = [self.placed(row) for row in plan.rows] if plan.is_ahead else plan.rows
        digests: list[list[int]] = []
        for row in rows:
            slot = self.slots[row.slot]
            if slot.num_cached is None:
                slot.num_cached = row.start
            for table, run in ((slot.full, row.full), (slot.sliding, row.sliding)):
                table.update({run.first + i: page for i, page in enumerate(run.pages)})
            digests.append(self.digests(slot, slot.drafts[: row.num_drafts]))
            self.verify(slot, digests[-1], row.start, row.start)
        written: tuple[set, set] = set(), set()
        for row, own in zip(rows, digests, strict=True):
            self.write(row, own, written)
        for row, own in zip(rows, digests, strict=True):
            for query in range(row.start, row.start + row.num_rows):
                self.verify(self.slots[row.slot], own, query, query + 1)
        passes: list[Pass] = []
        results = tuple(
            self.result(row, own, passes) for row, own in zip(rows, digests, strict=True)
        )
        self.draft_rows.run(passes)
        return StepResult(rows=results)

    def placed(self, row: StepRow) -> StepRow:
        """A row that was planned ahead, where its request has come to by now."""
        slot = self.slots[row.slot]
        return replace(
            row,
            start=len(slot.token_ids) - 1,
            draft_start=slot.drafted_to,
            draft_visible_from=slot.drafted_from,
        )

    def digests(self, slot: Slot, drafts: Sequence[int] = ()) -> list[int]:
        """What each position should hold."""
        return digests_of([*slot.token_ids, *drafts])

    def verify(self, slot: Slot, digests: list[int], query: int, end: int) -> None:
        """Positions before `end` that a query at position `query` sees hold what they should."""
        window, page_size = self.setup.window, self.setup.page_size
        if self.setup.num_full_pages:
            for position in range(end):
                place = slot.full[position // page_size], position % page_size
                assert self.full.get(place) == digests[position]
        for position in range(end if window is None else max(0, query - window + 1), end):
            place = slot.sliding[position // page_size], position % page_size
            assert self.sliding.get(place) == digests[position]

    def write(self, row: StepRow, digests: list[int], written: tuple[set, set]) -> None:
        slot = self.slots[row.slot]
        for position in range(row.start, row.start + row.num_rows):
            page, offset = divmod(position, self.setup.page_size)
            for memory, table, taken, done, is_there in (
                (self.full, slot.full, self.published[0], written[0], self.setup.num_full_pages),
                (self.sliding, slot.sliding, self.published[1], written[1], self.setup.window),
            ):
                if is_there:
                    place = table[page], offset
                    assert place[0] not in taken, "a published page is written to"
                    assert place not in done, "two requests write to one place"
                    done.add(place)
                    memory[place] = digests[position]
            if self.setup.window:
                self.writers[slot.sliding[page], offset] = slot
            self.ring[row.slot, position % self.ring_len] = digests[position]

    def result(self, row: StepRow, digests: list[int], passes: list[Pass]) -> RowResult:
        slot = self.slots[row.slot]
        admission, token_ids = slot.admission, slot.token_ids
        end = row.start + row.num_tokens
        assert row.samples == (end == len(token_ids))
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if admission.params.prompt_logprobs is not None:
            last = min(end, admission.num_prompt_tokens - 1)
            prompt_logprobs = tuple(
                TokenLogprobs(token_ids[position + 1], float(position + 1), 1, ())
                for position in range(row.start, last)
            )
        if not row.samples or self.rng.random() < self.luck.late:
            return RowResult(prompt_logprobs=prompt_logprobs)
        if self.rng.random() < self.luck.broken:
            return RowResult(error="broken")
        num_verified = row.num_drafts
        if self.rng.random() < self.luck.fewer_verified:
            num_verified = self.rng.randrange(num_verified + 1)
        tokens = self.verified(slot, digests[end - 1 :], num_verified)
        token_ids += tokens
        self.num_drafts += num_verified
        self.num_accepted += len(tokens) - 1
        slot.drafts = self.guesses(slot, row.num_proposals)
        if row.num_proposals:
            passes.append(self.draft_pass(row))
            num_computed = len(token_ids) - 1
            slot.drafted_from = row.draft_visible_from
            slot.drafted_to = num_computed
            if self.setup.recompute_boundary:
                certain = num_computed - (row.num_proposals - 1)
                slot.drafted_to = max(row.draft_visible_from, certain)
        logprobs = ()
        if admission.params.logprobs is not None:
            logprobs = tuple(TokenLogprobs(token_id, -1.0, 1, ()) for token_id in tokens)
        return RowResult(
            token_ids=tuple(tokens), logprobs=logprobs, prompt_logprobs=prompt_logprobs
        )

    def sample(self, slot: Slot, digest: int, num_more: int) -> int:
        """The token behind `digest`, which is that of its tokens and `num_more` others."""
        admission = slot.admission
        num_output = len(slot.token_ids) - admission.num_prompt_tokens + num_more
        seed, stop_ids = admission.sample_seed, admission.stop_ids
        return sample(digest, seed, num_output, admission.params, stop_ids)

    def verified(self, slot: Slot, digests: list[int], num_drafts: int) -> list[int]:
        """Accepted drafts and one token. digests: of the last known token, and of each draft."""
        tokens: list[int] = []
        for index, digest in enumerate(digests[: num_drafts + 1]):
            tokens.append(self.sample(slot, digest, index))
            if index < num_drafts and slot.drafts[index] != tokens[-1]:
                break
        return tokens

    def guesses(self, slot: Slot, count: int) -> list[int]:
        """Drafts, each right as often as luck has it where those before it are."""
        drafts: list[int] = []
        for index in range(count):
            right = self.sample(slot, self.digests(slot, drafts)[-1], index)
            is_right = self.rng.random() < self.luck.drafts_right
            drafts.append(right if is_right else self.rng.randrange(VOCAB_SIZE))
        return drafts

    def draft_pass(self, row: StepRow) -> Pass:
        slot = self.slots[row.slot]
        last = len(slot.token_ids) - 2
        for position in range(row.draft_start, last + 1):
            page, offset = divmod(position, self.setup.page_size)
            writer = self.writers[slot.sliding[page], offset]
            assert writer is slot, "draft rows are written beside rows of another request"
        ring_len = self.ring_len
        return Pass(
            table=slot.sliding,
            known=list(slot.token_ids),
            digests=self.digests(slot),
            hidden={
                position: self.ring.get((row.slot, position % ring_len))
                for position in range(row.draft_start, last + 1)
            },
            guesses=slot.drafts,
            start=row.draft_start,
            visible_from=row.draft_visible_from,
            num_cached=slot.num_cached or 0,
        )
