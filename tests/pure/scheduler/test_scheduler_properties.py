"""Random traces of requests against a worker that is only a memory and a tape of tokens.

The worker keeps what a plan tells it (tokens, two page tables a slot) and, for each page, a digest
of the tokens up to each position that was written there. Before a step every earlier position that
a row may see must hold the right digest, and after it the step's own as well. The token it samples
is a function of the digest and the request's seed, so the text of every request is known in
advance, whatever was batched, preempted, cached or aborted around it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_engine.cache.groups import CacheLayout, max_window_pages
from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import NewRequest, TokenLogprobs, TokenOutput
from mimo_engine.scheduler.plan import Admission, RowResult, StepPlan, StepResult, StepRow
from mimo_engine.scheduler.scheduler import Scheduler

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

    def scheduler(
        self, cache_class: type[CacheManager] = CacheManager
    ) -> tuple[Scheduler, CacheManager]:
        layout = CacheLayout(
            page_size=self.page_size,
            num_full_pages=self.num_full_pages,
            num_sliding_pages=self.num_sliding_pages,
            window=self.window,
        )
        cache = cache_class(layout, self.prefix_caching)
        config = SchedulerConfig(
            max_num_seqs=self.max_num_seqs, max_num_batched_tokens=self.max_num_batched_tokens
        )
        scheduler = Scheduler(
            config, cache, max_model_len=self.max_model_len, eos_token_ids=EOS, seed=7
        )
        return scheduler, cache


def digests_of(token_ids: list[int]) -> list[int]:
    digests, digest = [], 0
    for token_id in token_ids:
        digest = hash((digest, token_id))
        digests.append(digest)
    return digests


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
    full: dict[int, int] = field(default_factory=dict)
    sliding: dict[int, int] = field(default_factory=dict)


class Worker:
    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        self.slots: dict[int, Slot] = {}
        self.full: dict[tuple[int, int], int] = {}
        self.sliding: dict[tuple[int, int], int] = {}

    def run(self, plan: StepPlan) -> StepResult:
        for admission in plan.admissions:
            self.slots[admission.slot] = Slot(admission, list(admission.token_ids))
        for row in plan.rows:
            slot = self.slots[row.slot]
            for table, run in ((slot.full, row.full), (slot.sliding, row.sliding)):
                table.update({run.first + i: page for i, page in enumerate(run.pages)})
            self.verify(slot, row.start, row.start)
        for row in plan.rows:
            self.write(self.slots[row.slot], row)
        for row in plan.rows:
            for query in range(row.start, row.start + row.num_tokens):
                self.verify(self.slots[row.slot], query, query + 1)
        return StepResult(rows=tuple(self.result(row) for row in plan.rows))

    def digests(self, slot: Slot) -> list[int]:
        """What each position should hold."""
        return digests_of(slot.token_ids)

    def verify(self, slot: Slot, query: int, end: int) -> None:
        """Positions before `end` that a query at position `query` sees hold what they should."""
        digests = self.digests(slot)[:end]
        window = self.setup.window
        first_visible = end if window is None else max(0, query - window + 1)
        for position in range(end):
            page, offset = divmod(position, self.setup.page_size)
            if self.setup.num_full_pages:
                assert self.full.get((slot.full[page], offset)) == digests[position]
            if position >= first_visible:
                assert self.sliding.get((slot.sliding[page], offset)) == digests[position]

    def write(self, slot: Slot, row: StepRow) -> None:
        digests = self.digests(slot)
        for position in range(row.start, row.start + row.num_tokens):
            page, offset = divmod(position, self.setup.page_size)
            if self.setup.num_full_pages:
                self.full[slot.full[page], offset] = digests[position]
            if self.setup.window is not None:
                self.sliding[slot.sliding[page], offset] = digests[position]

    def result(self, row: StepRow) -> RowResult:
        slot = self.slots[row.slot]
        admission, token_ids = slot.admission, slot.token_ids
        end = row.start + row.num_tokens
        assert row.samples == (end == len(token_ids))
        prompt_logprobs: tuple[TokenLogprobs, ...] = ()
        if admission.params.prompt_logprobs is not None:
            last = min(end, admission.num_prompt_tokens - 1)
            prompt_logprobs = tuple(
                TokenLogprobs(token_ids[position + 1], float(position + 1), 1, [])
                for position in range(row.start, last)
            )
        if not row.samples:
            return RowResult(prompt_logprobs=prompt_logprobs)
        num_output = len(token_ids) - admission.num_prompt_tokens
        token_id = sample(
            self.digests(slot)[-1],
            admission.sample_seed,
            num_output,
            admission.params,
            admission.stop_ids,
        )
        token_ids.append(token_id)
        return RowResult(token_ids=(token_id,), prompt_logprobs=prompt_logprobs)


@dataclass
class Trace:
    """What a run of operations did."""

    plans: list[StepPlan] = field(default_factory=list)
    added: dict[str, NewRequest] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    outputs: dict[str, list[TokenOutput]] = field(default_factory=dict)
    num_preemptions: int = 0
    num_hit_tokens: int = 0


def drive(setup: Setup, operations, *, cache_class: type[CacheManager] = CacheManager) -> Trace:
    """Carry out the operations, then step until nothing is left, checking all the while."""
    scheduler, cache = setup.scheduler(cache_class)
    worker, trace = Worker(setup), Trace()

    def abort(number: int) -> None:
        alive = [i for i in trace.added if not finished(trace, i)]
        if alive:
            request_id = alive[number % len(alive)]
            assert scheduler.abort(request_id)
            assert not scheduler.abort(request_id)
            trace.aborted.add(request_id)

    def step(abort_number: int | None = None) -> None:
        plan = scheduler.plan()
        cache.check()
        if plan is None:
            assert not scheduler.has_work
            return
        trace.plans.append(plan)
        check_plan(plan, setup, worker)
        result = worker.run(plan)
        if abort_number is not None:
            abort(abort_number)
        for output in scheduler.apply(plan, result):
            assert output.request_id not in trace.aborted
            trace.outputs.setdefault(output.request_id, []).append(output)
        cache.check()

    for operation, argument in operations:
        if operation == "add":
            arrival = len(trace.added)
            prompt, params = argument
            new = NewRequest(
                request_id=f"r{arrival}",
                prompt_token_ids=prompt[: setup.max_model_len - 1],
                params=SamplingParams(seed=arrival, **params),
            )
            scheduler.add(new)
            trace.added[new.request_id] = new
        elif operation == "abort":
            abort(argument)
        elif operation == "abort in flight":
            step(argument)
        else:
            step()
    num_steps = 0
    while scheduler.has_work:
        step()
        num_steps += 1
        assert num_steps < 5000, "livelock"
    cache.check()
    stats = scheduler.stats()
    assert stats.full_pages_used == stats.sliding_pages_used == 0
    trace.num_preemptions, trace.num_hit_tokens = stats.num_preemptions, stats.prefix_hit_tokens
    return trace


def finished(trace: Trace, request_id: str) -> bool:
    outputs = trace.outputs.get(request_id, [])
    return request_id in trace.aborted or bool(outputs and outputs[-1].finish_reason)


def check_plan(plan: StepPlan, setup: Setup, worker: Worker) -> None:
    assert 0 < plan.num_tokens <= setup.max_num_batched_tokens
    seeds = {row.slot: None for row in plan.rows}
    assert len(seeds) == len(plan.rows) <= setup.max_num_seqs
    assert all(0 <= slot < setup.max_num_seqs for slot in seeds)
    arrival_of_slot = {slot: state.admission.sample_seed for slot, state in worker.slots.items()}
    for admission in plan.admissions:
        arrival_of_slot[admission.slot] = admission.sample_seed
    arrivals = [arrival_of_slot[row.slot] for row in plan.rows]
    assert arrivals == sorted(arrivals)
    admitted = {admission.slot for admission in plan.admissions}
    carried_over = [row for row in plan.rows if row.slot not in admitted]
    assert all(row.num_tokens == 1 for row in carried_over[:-1])
    assert all(row.samples for row in plan.rows[:-1])


def check_outputs(trace: Trace, setup: Setup) -> None:
    for request_id, new in trace.added.items():
        outputs = trace.outputs.get(request_id, [])
        tokens = [token_id for output in outputs for token_id in output.token_ids]
        expected = expected_output(new, setup)
        if request_id in trace.aborted:
            assert tokens == expected[: len(tokens)]
            continue
        assert tokens == expected
        assert all(output.finish_reason is None for output in outputs[:-1])
        stop_ids = (() if new.params.ignore_eos else EOS) + new.params.stop_token_ids
        stopped = tokens[-1] in stop_ids and len(tokens) > new.params.min_tokens
        assert outputs[-1].finish_reason == ("stop" if stopped else "length")
        assert outputs[-1].stop_token_id == (tokens[-1] if stopped else None)
        assert all(output.num_cached_tokens == 0 for output in outputs[1:])
        assert all(output.prompt_logprobs is None for output in outputs[1:])
        if new.params.prompt_logprobs is None:
            assert outputs[0].prompt_logprobs is None
        else:
            assert outputs[0].num_cached_tokens == 0
            first, *others = outputs[0].prompt_logprobs
            assert first is None
            assert [entry.token_id for entry in others] == new.prompt_token_ids[1:]
            assert [entry.logprob for entry in others] == list(range(1, len(new.prompt_token_ids)))


@st.composite
def setups(draw: st.DrawFn) -> Setup:
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    window = draw(st.one_of(st.none(), st.integers(1, 20)))
    max_model_len = draw(st.integers(16, 60))
    fits_one = -(-max_model_len // page_size)
    num_full = draw(st.integers(fits_one, 3 * fits_one))
    num_sliding = 0
    if window is not None:
        smallest = max_window_pages(window, page_size) + 1
        num_sliding = draw(st.integers(smallest, smallest + 2 * fits_one))
        if draw(st.integers(0, 7)) == 0:
            num_full = 0
    max_num_seqs = draw(st.integers(1, 8))
    return Setup(
        page_size=page_size,
        num_full_pages=num_full,
        num_sliding_pages=num_sliding,
        window=window,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=draw(st.integers(max_num_seqs, max_num_seqs + 30)),
        max_model_len=max_model_len,
        prefix_caching=draw(st.booleans()) or draw(st.booleans()),
    )


def document(index: int, length: int) -> list[int]:
    rng = random.Random(index)
    return [rng.randrange(VOCAB_SIZE) for _ in range(length)]


def random_request(rng: random.Random) -> tuple[list[int], dict]:
    prompt = document(rng.randrange(3), rng.randrange(1, rng.choice([8, 50])))
    prompt += [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(4))]
    max_tokens = rng.choice([None, rng.randrange(1, 40)])
    return prompt, {
        "max_tokens": max_tokens,
        "min_tokens": rng.randrange(min(4, max_tokens or 4) + 1),
        "ignore_eos": rng.random() < 0.6,
        "stop_token_ids": rng.choice([(), (3,)]),
        "prompt_logprobs": rng.choice([None, None, None, 0]),
    }


def random_operations(rng: random.Random, num_operations: int) -> list:
    """Adding comes in bursts, so that queues build up and run dry."""
    trace_operations: list = []
    share_of_adds = 0.2
    for _ in range(num_operations):
        draw = rng.random()
        if draw < 0.05:
            share_of_adds = rng.choice([0.05, 0.2, 0.7])
        if draw < share_of_adds:
            trace_operations.append(("add", random_request(rng)))
        elif draw < 0.9:
            trace_operations.append(("step", None))
        else:
            kind = rng.choice(["abort", "abort in flight"])
            trace_operations.append((kind, rng.randrange(9)))
    return trace_operations


def prove_trace(setup: Setup, trace_operations: list) -> Trace:
    trace = drive(setup, trace_operations)
    check_outputs(trace, setup)
    again = drive(setup, trace_operations)
    assert again.plans == trace.plans
    return trace


@settings(max_examples=100, deadline=None, derandomize=True)
@given(setups(), st.integers(0, 2**32))
def test_every_trace_gives_the_right_tokens_from_the_right_pages_in_the_same_order(setup, seed):
    prove_trace(setup, random_operations(random.Random(seed), 60))


@pytest.mark.prove
@pytest.mark.timeout(3 * 3600)
@settings(max_examples=5000, deadline=None)
@given(setups(), st.integers(0, 2**32))
def test_every_trace_gives_the_right_tokens_at_full_size(setup, seed):
    prove_trace(setup, random_operations(random.Random(seed), 300))


CROWDED = Setup(
    page_size=4,
    num_full_pages=30,
    num_sliding_pages=16,
    window=6,
    max_num_seqs=6,
    max_num_batched_tokens=24,
    max_model_len=60,
    prefix_caching=True,
)


def test_a_crowded_cache_preempts_hits_and_still_gives_the_right_tokens():
    trace = drive(CROWDED, random_operations(random.Random(0), 600))
    check_outputs(trace, CROWDED)
    assert trace.num_preemptions >= 10
    assert trace.num_hit_tokens > 200
    assert len(trace.aborted) > 5


class SlidesOneTooEarly(CacheManager):
    def _slide(self, pages: SequencePages) -> None:
        pages.num_computed += 1
        super()._slide(pages)
        pages.num_computed -= 1

    def _next_slide(self, pages: SequencePages) -> int:
        return super()._next_slide(pages) - 1


class PublishesBeforeTheStep(CacheManager):
    def extend(self, pages: SequencePages, num_tokens: int) -> bool:
        extended = super().extend(pages, num_tokens)
        if extended:
            num_computed = pages.num_computed
            pages.num_computed = num_computed + num_tokens
            self._publish(pages)
            pages.num_computed = num_computed
        return extended


class ForgetsToSendSwappedPages(CacheManager):
    def _publish(self, pages: SequencePages) -> None:
        num_sent = pages.num_sent
        super()._publish(pages)
        pages.num_sent = num_sent


class LeaksThePagesOfTheDead(CacheManager):
    def free(self, pages: SequencePages) -> None:
        page = pages.full.pop() if len(pages.full) > len(pages.published) else None
        super().free(pages)
        if page is not None and page % 5:
            self._full_pool.release(page)


@pytest.mark.parametrize(
    "cache_class",
    [SlidesOneTooEarly, PublishesBeforeTheStep, ForgetsToSendSwappedPages, LeaksThePagesOfTheDead],
)
def test_a_seeded_bug_is_caught(cache_class):
    trace_operations = random_operations(random.Random(0), 600)
    with pytest.raises((AssertionError, KeyError)):
        drive(CROWDED, trace_operations, cache_class=cache_class)
