"""Random traffic for a scheduler with a simulated worker, checked step by step and at its end."""

from __future__ import annotations

import random
from collections import Counter, deque
from contextlib import suppress
from dataclasses import dataclass, field

from hypothesis import strategies as st
from simulated_worker import EOS, VOCAB_SIZE, Luck, Setup, Worker, expected_output

from mimo_engine.cache.groups import max_window_pages
from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.cache.pages import PageRun
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import NewRequest, TokenOutput
from mimo_engine.scheduler.plan import StepPlan, StepResult, StepRow
from mimo_engine.scheduler.policy import longest_total

__all__ = [
    "CROWDED",
    "Driver",
    "Trace",
    "check_outputs",
    "document",
    "drive",
    "random_operations",
    "setups",
]

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


@dataclass
class Trace:
    """What a run of operations did."""

    plans: list[StepPlan] = field(default_factory=list)
    added: dict[str, NewRequest] = field(default_factory=dict)
    aborted: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    """Those of a step whose result was lost."""
    broken: set[str] = field(default_factory=set)
    outputs: dict[str, list[TokenOutput]] = field(default_factory=dict)
    num_preemptions: int = 0
    num_hit_tokens: int = 0
    num_ahead: int = 0
    num_stops_in_drafts: int = 0
    """Requests that ended before the last of the tokens that a step brought."""

    def has_ended(self, request_id: str) -> bool:
        outputs = self.outputs.get(request_id, [])
        gone = request_id in self.aborted or request_id in self.lost
        return gone or bool(outputs and outputs[-1].finish_reason)


class Driver:
    """A scheduler, its cache and a worker. `depth`: of every step; None: one that changes."""

    def __init__(
        self,
        setup: Setup,
        *,
        cache_class: type[CacheManager] = CacheManager,
        worker_class: type[Worker] = Worker,
        luck: Luck | None = None,
        seed: int = 0,
        depth: int | None = None,
        ahead: float = 0.0,
    ) -> None:
        """ahead: how often a step is planned before the result of the one in flight."""
        self.setup = setup
        self._ahead = ahead
        self.scheduler, self.cache = setup.scheduler(cache_class)
        self.worker = worker_class(setup, luck=luck, seed=seed)
        self.trace = Trace()
        self.rng = random.Random(seed)
        self._fixed_depth = depth
        self._depth = setup.num_draft_layers

    def next_depth(self) -> int:
        if self._fixed_depth is not None:
            return self._fixed_depth
        if self.setup.num_draft_layers and self.rng.random() < 0.2:
            self._depth = self.rng.randrange(self.setup.num_draft_layers + 1)
        return self._depth

    def run(self, operations) -> Trace:
        """Carry out the operations, then step until nothing is left, checking all the while."""
        for operation, argument in operations:
            if operation == "add":
                self.add(*argument)
            elif operation == "go on":
                self.go_on(*argument)
            elif operation == "abort":
                self.abort(argument)
            elif operation == "abort in flight":
                self.step(abort_number=argument)
            elif operation == "lose":
                self.lose(has_run=bool(argument))
            elif operation == "interrupt":
                self.interrupt(argument)
            else:
                self.step()
        num_steps = 0
        while self.scheduler.has_work:
            self.step()
            num_steps += 1
            assert num_steps < 5000, "livelock"
        self.cache.check()
        stats = self.scheduler.stats()
        assert stats.full_pages_used == stats.sliding_pages_used == 0
        self.trace.num_preemptions = stats.num_preemptions
        self.trace.num_hit_tokens = stats.prefix_hit_tokens
        return self.trace

    def add(self, prompt: list[int], params: dict) -> NewRequest:
        arrival = len(self.trace.added)
        new = NewRequest(
            request_id=f"r{arrival}",
            prompt_token_ids=prompt[: self.setup.max_model_len - 1],
            params=SamplingParams(seed=arrival, **params),
        )
        self.scheduler.add(new)
        self.trace.added[new.request_id] = new
        return new

    def go_on(self, number: int, num_tokens: int | None, more: list[int], params: dict) -> None:
        """The next turn of the last request but `number`, as far as its text is known, or another
        turn behind its first tokens."""
        if self.trace.added:
            request_id = f"r{max(0, len(self.trace.added) - 1 - number)}"
            text = list(self.trace.added[request_id].prompt_token_ids)
            for output in self.trace.outputs.get(request_id, []):
                text += output.token_ids
            self.add(text[:num_tokens] + more, params)

    def abort(self, number: int) -> None:
        alive = [i for i in self.trace.added if not self.trace.has_ended(i)]
        if alive:
            request_id = alive[number % len(alive)]
            assert self.scheduler.abort(request_id)
            assert not self.scheduler.abort(request_id)
            self.trace.aborted.add(request_id)

    def plan(self, depth: int) -> StepPlan | None:
        plan = self.scheduler.plan(depth)
        self.cache.check()
        if plan is None:
            assert not self.scheduler.has_work
            return None
        self.trace.plans.append(plan)
        num_running = self.scheduler.stats().num_running
        check_plan(plan, self.setup, self.worker, depth, num_running)
        self.check_shares(plan)
        self.see_published()
        return plan

    def see_published(self) -> None:
        entries = self.cache._prefix.entries()
        self.worker.published = (
            frozenset(entry.full_page for entry in entries),
            frozenset(e.sliding_page for e in entries if e.sliding_page is not None),
        )

    def check_shares(self, plan: StepPlan) -> None:
        """Each running request has a row, and a prompt what is left: of the budget, or of pages."""
        cache = self.cache
        available = [cache.num_available_full] if self.setup.num_full_pages else []
        available += [cache.num_available_sliding] if self.setup.window else []
        *others, youngest = self.scheduler._running or [None]
        assert all(request.is_in_flight for request in others)
        if youngest is not None and not youngest.is_in_flight:
            assert min(available) == 0
        if plan.rows and not plan.rows[-1].samples:
            uses_all = plan.num_tokens == self.setup.max_num_batched_tokens
            assert uses_all or min(available) == 0

    def step(self, *, abort_number: int | None = None) -> StepPlan | None:
        plan = self.plan(self.next_depth())
        if plan is None:
            return None
        flights = deque([(plan, self.worker.run(plan))])
        while flights:
            if self.rng.random() < self._ahead:
                ahead = self.plan_ahead()
                if ahead is not None:
                    flights.append((ahead, self.worker.run(ahead)))
            if abort_number is not None:
                self.abort(abort_number)
                abort_number = None
            self.apply(*flights.popleft())
        return plan

    def plan_ahead(self) -> StepPlan | None:
        plan = self.scheduler.plan_ahead()
        self.cache.check()
        if plan is not None:
            self.trace.num_ahead += 1
            self.see_published()
        return plan

    def apply(self, plan: StepPlan, result: StepResult) -> None:
        num_sampled = Counter(
            {self.request_of(row): len(done.token_ids) for row, done in zip_rows(plan, result)}
        )
        for output in self.scheduler.apply(plan, result):
            request_id = output.request_id
            assert not self.trace.has_ended(request_id)
            self.trace.outputs.setdefault(request_id, []).append(output)
            self.trace.num_stops_in_drafts += len(output.token_ids) < num_sampled[request_id]
            if output.finish_reason == "error":
                self.trace.broken.add(request_id)
        self.cache.check()

    def lose(self, *, has_run: bool) -> None:
        """A step whose result does not come, and that the worker has run or not."""
        plan = self.plan(self.next_depth())
        if plan is not None and has_run:
            self.worker.run(plan)
        self.discard()

    def interrupt(self, num_calls: int) -> None:
        """Ctrl-C while a step is planned, when so many of its rows are there."""
        places = iter(range(num_calls))
        take_new_pages = self.cache.take_new_pages

        def interrupted(pages: SequencePages) -> tuple[PageRun, PageRun]:
            if next(places, None) is None:
                raise KeyboardInterrupt
            return take_new_pages(pages)

        self.cache.take_new_pages = interrupted
        with suppress(KeyboardInterrupt):
            self.scheduler.plan(self.next_depth())
        self.cache.take_new_pages = take_new_pages
        self.discard()

    def discard(self) -> None:
        self.trace.lost |= {request.request_id for request in self.scheduler._running}
        self.scheduler.discard()
        self.cache.check()
        stats = self.scheduler.stats()
        assert stats.num_running == stats.full_pages_used == stats.sliding_pages_used == 0

    def request_of(self, row: StepRow) -> str:
        # A request's seed is its number.
        return f"r{self.worker.slots[row.slot].admission.sample_seed}"


def zip_rows(plan, result):
    return zip(plan.rows, result.rows, strict=True)


def drive(setup: Setup, operations, **options) -> Trace:
    return Driver(setup, **options).run(operations)


def check_plan(plan: StepPlan, setup: Setup, worker: Worker, depth: int, num_running: int) -> None:
    assert 0 < plan.num_tokens <= setup.max_num_batched_tokens
    seeds = {row.slot: None for row in plan.rows}
    assert len(seeds) == len(plan.rows) <= setup.max_num_seqs
    assert all(0 <= slot < setup.max_num_seqs for slot in seeds)
    admissions = {slot: state.admission for slot, state in worker.slots.items()}
    admissions |= {admission.slot: admission for admission in plan.admissions}
    arrivals = [admissions[row.slot].sample_seed for row in plan.rows]
    assert arrivals == sorted(arrivals)
    admitted = {admission.slot for admission in plan.admissions}
    carried_over = [row for row in plan.rows if row.slot not in admitted]
    assert all(row.num_tokens == 1 for row in carried_over[:-1])
    assert all(row.samples for row in plan.rows[:-1])
    room = setup.max_num_batched_tokens - num_running
    for row in plan.rows:
        admission = admissions[row.slot]
        known, drafts = list(admission.token_ids), []
        if row.slot not in admitted:
            known, drafts = worker.slots[row.slot].token_ids, worker.slots[row.slot].drafts
        longest = longest_total(
            admission.num_prompt_tokens, admission.params.max_tokens, setup.max_model_len
        )
        num_left = longest - len(known)
        assert 0 <= row.num_drafts <= min(len(drafts), depth)
        assert row.num_drafts == 0 or row.samples
        # Each may bring a token, and there is always one behind them.
        assert row.num_drafts < num_left
        # One token comes in this step; the last token of all is never a draft's business. What is
        # beside a token of each request goes to the oldest.
        wanted = max(0, min(depth, num_left - 2)) if row.samples else 0
        assert row.num_proposals == min(wanted, max(0, room))
        room -= row.num_proposals
        if row.num_proposals:
            assert 0 <= row.draft_visible_from <= row.draft_start < row.start + row.num_tokens


def check_outputs(trace: Trace, setup: Setup) -> None:
    for request_id, new in trace.added.items():
        outputs = trace.outputs.get(request_id, [])
        tokens = [token_id for output in outputs for token_id in output.token_ids]
        expected = expected_output(new, setup)
        if new.params.logprobs is not None:
            scored = [entry.token_id for output in outputs for entry in output.logprobs or ()]
            assert scored == tokens
        if request_id in trace.aborted | trace.lost | trace.broken:
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
def setups(draw: st.DrawFn, *, with_drafts: bool = False) -> Setup:
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    window = draw(st.integers(1, 20) if with_drafts else st.one_of(st.none(), st.integers(1, 20)))
    num_draft_layers = draw(st.sampled_from([1, 2, 3, 3, 5])) if with_drafts else 0
    max_model_len = draw(st.integers(16, 60))
    fits_one = -(-max_model_len // page_size)
    num_full = draw(st.integers(fits_one, 3 * fits_one))
    num_sliding = 0
    if window is not None:
        smallest = max_window_pages(window + num_draft_layers, page_size) + 1
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
        num_draft_layers=num_draft_layers,
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
        "logprobs": rng.choice([None, None, 0]),
    }


def random_turn(rng: random.Random) -> tuple:
    num_tokens = rng.choice([None, None, None, rng.randrange(1, 40)])
    more = [rng.randrange(VOCAB_SIZE) for _ in range(rng.randrange(1, 4))]
    params = {"max_tokens": rng.randrange(1, 20), "ignore_eos": rng.random() < 0.8}
    return rng.randrange(8), num_tokens, more, params


def random_operations(
    rng: random.Random,
    num_operations: int,
    *,
    share_of_turns: float = 0.0,
    share_of_losses: float = 0.0,
) -> list:
    """Adding comes in bursts, so that queues build up and run dry."""
    trace_operations: list = []
    share_of_adds = 0.2
    for _ in range(num_operations):
        draw = rng.random()
        if draw < 0.05:
            share_of_adds = rng.choice([0.05, 0.2, 0.7])
        if draw < share_of_adds and rng.random() < share_of_turns:
            trace_operations.append(("go on", random_turn(rng)))
        elif draw < share_of_adds:
            trace_operations.append(("add", random_request(rng)))
        elif draw < 0.9:
            trace_operations.append(("step", None))
        elif rng.random() < share_of_losses:
            kind = rng.choice(["lose", "interrupt"])
            trace_operations.append((kind, rng.randrange(2)))
        else:
            kind = rng.choice(["abort", "abort in flight"])
            trace_operations.append((kind, rng.randrange(9)))
    return trace_operations
