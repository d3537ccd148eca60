"""Random traces of requests with media: the memory worker, with towers that only keep account.

What a position holds depends on the media row that stands there, so a prefix hit under another
picture, a row read before it was encoded, and a wrong row all show as a wrong text. The towers
refuse a unit that is encoded twice while its item is known, or without features.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_worker import EOS, Setup, Slot, Worker, sample
from traffic import CROWDED, setups

from mimo_engine.cache.encoder import EncoderCache
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import RequestError
from mimo_engine.messages import MediaItem, MediaSpan, NewRequest, TokenOutput
from mimo_engine.scheduler.plan import StepPlan, StepResult

PAD = 9
MAX_ENCODER_TOKENS = 6


def content_hash(number: int) -> bytes:
    return number.to_bytes(16, "big")


def unit_rows_of(number: int) -> int:
    return 1 + number % 4


def digests_with_media(token_ids: list[int], media) -> list[int]:
    rows = {
        # Numbers alone, whose hash is the same in every run.
        span.start + i: (int.from_bytes(item.content_hash, "big"), span.first_row + i)
        for item in media
        for span in item.spans
        for i in range(span.num_tokens)
    }
    digests, digest = [], 0
    for position, token_id in enumerate(token_ids):
        digest = hash((digest, token_id, rows.get(position, 0)))
        digests.append(digest)
    return digests


@dataclass
class Towers:
    """What worker/media.py keeps, without tensors."""

    features: set[bytes] = field(default_factory=set)
    units: dict[bytes, int] = field(default_factory=dict)
    num_units: dict[bytes, int] = field(default_factory=dict)
    num_encoded: int = 0
    broken: frozenset[bytes] = frozenset()

    def add(self, item: MediaItem) -> None:
        key = item.content_hash
        self.num_units[key] = item.num_units
        if self.units.get(key, 0) < item.num_units:
            self.features.add(key)

    def see_to(self, plan: StepPlan) -> dict[bytes, str]:
        for key in plan.forget:
            self.features.discard(key)
            self.units.pop(key, None)
        errors = {}
        for task in plan.encode:
            key = task.content_hash
            assert key in self.features, "encoded without features"
            if task.first_unit == 0:
                self.units[key] = 0
            assert self.units[key] == task.first_unit, "units out of order"
            self.units[key] += task.num_units
            self.num_encoded += task.num_units
            assert self.units[key] <= self.num_units[key]
            if self.units[key] == self.num_units[key]:
                self.features.discard(key)
            if key in self.broken:
                errors[key] = "broken"
        return errors


class MediaWorker(Worker):
    def __init__(self, setup: Setup, towers: Towers) -> None:
        super().__init__(setup)
        self.towers = towers

    def digests(self, slot: Slot, drafts: Sequence[int] = ()) -> list[int]:
        return digests_with_media([*slot.token_ids, *drafts], slot.admission.media)

    def run(self, plan: StepPlan) -> StepResult:
        errors = self.towers.see_to(plan)
        result = super().run(plan)
        for row in plan.rows:
            for item in self.slots[row.slot].admission.media:
                for span in item.spans:
                    overlaps = span.start < row.start + row.num_tokens and (
                        span.start + span.num_tokens > row.start
                    )
                    if overlaps:
                        # All of the item was there before this step: units are whole in order.
                        assert self.towers.units.get(item.content_hash) == item.num_units
        return replace(result, encode_errors=errors)


def random_media_request(rng: random.Random, number: int, max_len: int) -> NewRequest:
    """Text, pads of a few well-known items, text, ...; conversations share their beginnings."""
    if rng.random() < 0.5:
        rng = random.Random(rng.randrange(6))  # the same beginning as others
    tokens: list[int] = [rng.randrange(8) for _ in range(rng.randrange(5))]
    media = []
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        which = rng.randrange(8)
        num_rows, used = 3 + which, 0
        spans = []
        while used < num_rows and len(spans) < 3:
            count = rng.randrange(1, num_rows - used + 1)
            if len(tokens) + count > max_len - 2:
                break
            spans.append(MediaSpan(len(tokens), count, used))
            tokens += [PAD] * count + [rng.randrange(8)]
            used += count
        if spans:
            item = MediaItem(
                kind="vision",
                content_hash=content_hash(which),
                num_rows=num_rows,
                unit_rows=unit_rows_of(which),
                spans=spans,
                arrays=[],
            )
            media.append(item)
    tokens.append(number % 8)
    return NewRequest(
        request_id=f"r{number}",
        prompt_token_ids=tokens[: max_len - 1],
        params=SamplingParams(
            seed=number,
            max_tokens=1 + number % 13,
            ignore_eos=number % 2 == 0,
            prompt_logprobs=0 if number % 11 == 5 else None,
        ),
        media=media,
    )


def expected_output(new: NewRequest, setup: Setup) -> list[int]:
    params, tokens, output = new.params, list(new.prompt_token_ids), []
    stop_ids = () if params.ignore_eos else EOS
    while True:
        digest = digests_with_media(tokens, new.media)[-1]
        token_id = sample(digest, params.seed or 0, len(output), params, stop_ids)
        output.append(token_id)
        tokens.append(token_id)
        if token_id in stop_ids or len(output) == params.max_tokens:
            return output
        if len(tokens) == setup.max_model_len:
            return output


class Driver:
    """A scheduler, the memory worker and the towers, driven at random."""

    def __init__(self, setup: Setup, seed: int, capacity: int, broken: frozenset[bytes]) -> None:
        self.setup = setup
        self.rng = random.Random(seed)
        self.capacity = capacity
        self.encoder = EncoderCache(capacity)
        self.scheduler, self.cache = setup.scheduler(
            encoder=self.encoder, max_encoder_tokens=MAX_ENCODER_TOKENS
        )
        self.towers = Towers(broken=broken)
        self.worker = MediaWorker(setup, self.towers)
        self.live: dict[str, NewRequest] = {}
        self.texts: dict[str, list[int]] = {}
        self.counts = {"added": 0, "done": 0, "aborted": 0, "errors": 0}

    def step(self) -> None:
        plan = self.scheduler.plan(self.rng.randrange(self.setup.num_draft_layers + 1))
        self.cache.check()
        self.encoder.check_invariants()
        if plan is None:
            assert not self.scheduler.has_work
            return
        assert plan.rows or plan.encode or plan.forget
        result = self.worker.run(plan)
        if self.live and self.rng.random() < 0.1:
            self.abort()
        for output in self.scheduler.apply(plan, result):
            self.take(output)
        self.encoder.check_invariants()

    def take(self, output: TokenOutput) -> None:
        new = self.live.get(output.request_id)
        assert new is not None, "an output of a request that has ended"
        text = self.texts.setdefault(output.request_id, [])
        text.extend(output.token_ids)
        if output.finish_reason is None:
            return
        del self.live[output.request_id]
        if output.finish_reason == "error":
            assert any(item.content_hash in self.towers.broken for item in new.media)
            self.counts["errors"] += 1
        else:
            assert text == expected_output(new, self.setup)
            self.counts["done"] += 1

    def abort(self) -> None:
        request_id = self.rng.choice(list(self.live))
        assert self.scheduler.abort(request_id)
        del self.live[request_id]
        self.counts["aborted"] += 1

    def add(self, number: int) -> None:
        new = random_media_request(self.rng, number, self.setup.max_model_len)
        try:
            self.scheduler.add(new)
        except RequestError:
            wanted = sum({item.content_hash: item.num_rows for item in new.media}.values())
            assert wanted > self.capacity
            return
        self.counts["added"] += 1
        self.live[new.request_id] = new
        for item in new.media:
            self.towers.add(item)


def prove(setup: Setup, seed: int, num_steps: int, *, capacity: int, broken=frozenset()) -> dict:
    driver = Driver(setup, seed, capacity, broken)
    for number in range(num_steps):
        if driver.rng.random() < 0.4:
            driver.add(number)
        elif driver.rng.random() < 0.1 and driver.live:
            driver.abort()
        else:
            driver.step()
    for _ in range(5000):
        if not driver.scheduler.has_work:
            break
        driver.step()
    assert not driver.scheduler.has_work, "livelock"
    assert not driver.live
    # No features outlive the requests, and the rows that are kept fit.
    assert not driver.towers.features
    assert driver.encoder.num_rows <= capacity
    assert {key for key, count in driver.towers.units.items() if count} == set(driver.encoder._idle)
    return driver.counts | {"reused": driver.encoder.num_reused_rows}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(setups(), st.integers(0, 2**32), st.integers(0, 60))
def test_media_requests_get_the_right_rows_and_leave_nothing(setup, seed, capacity):
    prove(setup, seed, 60, capacity=capacity)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(setups(with_drafts=True), st.integers(0, 2**32), st.integers(0, 60))
def test_media_requests_have_the_same_text_with_drafts(setup, seed, capacity):
    prove(setup, seed, 60, capacity=capacity)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(setups(), st.integers(0, 2**32))
def test_an_item_that_cannot_be_encoded_ends_its_own_requests_alone(setup, seed):
    prove(setup, seed, 60, capacity=40, broken=frozenset({content_hash(2), content_hash(5)}))


@pytest.mark.prove
@settings(max_examples=5000, deadline=None)
@given(setups(), st.integers(0, 2**32), st.integers(0, 60))
def test_media_requests_get_the_right_rows_at_full_size(setup, seed, capacity):
    prove(setup, seed, 300, capacity=capacity)


@pytest.mark.parametrize(
    ("num_full_pages", "page_size", "max_num_seqs", "budget", "max_model_len", "seed", "capacity"),
    [(20, 2, 1, 6, 39, 375, 19), (113, 1, 2, 5, 60, 523, 27)],
)
def test_a_request_that_lost_its_prefix_hit_makes_way_for_the_next_one(
    num_full_pages, page_size, max_num_seqs, budget, max_model_len, seed, capacity
):
    """Nothing was planned although there was work: the head of the queue had gone back to have its
    media encoded, where there was no room as long as another one waited."""
    setup = Setup(
        page_size=page_size,
        num_full_pages=num_full_pages,
        num_sliding_pages=0,
        window=None,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        max_model_len=max_model_len,
        prefix_caching=True,
    )
    prove(setup, seed, 150, capacity=capacity)


def test_a_crowded_cache_reuses_and_evicts():
    counts = prove(CROWDED, 3, 1500, capacity=24)
    assert counts["done"] > 200
    assert counts["aborted"] > 20
    assert counts["reused"] > 200
