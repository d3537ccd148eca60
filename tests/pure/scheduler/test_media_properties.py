"""Random traces of requests with media: the memory worker, with towers that only keep account.

What a position holds depends on the media row that stands there, so a prefix hit under another
picture, a row read before it was encoded, and a wrong row all show as a wrong text. The towers
refuse a unit that is encoded twice while its item is known, or without features.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_scheduler_properties import CROWDED, EOS, Setup, Slot, Worker, sample, setups

from mimo_engine.cache.encoder import EncoderCache
from mimo_engine.cache.manager import CacheManager
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import RequestError
from mimo_engine.messages import MediaItem, MediaSpan, NewRequest
from mimo_engine.scheduler.plan import StepPlan, StepResult
from mimo_engine.scheduler.scheduler import Scheduler

PAD = 9
MAX_ENCODER_TOKENS = 6


def content_hash(number: int) -> bytes:
    return number.to_bytes(16, "big")


def unit_rows_of(number: int) -> int:
    return 1 + number % 4


def digests_with_media(token_ids: list[int], media) -> list[int]:
    rows = {
        span.start + i: (item.content_hash, span.first_row + i)
        for item in media
        for span in item.spans
        for i in range(span.num_tokens)
    }
    digests, digest = [], 0
    for position, token_id in enumerate(token_ids):
        digest = hash((digest, token_id, rows.get(position)))
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

    def digests(self, slot: Slot) -> list[int]:
        return digests_with_media(slot.token_ids, slot.admission.media)

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


def prove(setup: Setup, seed: int, num_steps: int, *, capacity: int, broken=frozenset()) -> dict:
    rng = random.Random(seed)
    cache = CacheManager(setup.scheduler()[1].layout, setup.prefix_caching)
    encoder = EncoderCache(capacity)
    scheduler = Scheduler(
        setup_config(setup),
        cache,
        max_model_len=setup.max_model_len,
        eos_token_ids=EOS,
        seed=7,
        encoder=encoder,
        max_encoder_tokens=MAX_ENCODER_TOKENS,
    )
    towers = Towers(broken=broken)
    worker = MediaWorker(setup, towers)
    live: dict[str, NewRequest] = {}
    texts: dict[str, list[int]] = {}
    counts = {"added": 0, "done": 0, "aborted": 0, "errors": 0}

    def step() -> None:
        plan = scheduler.plan()
        cache.check()
        encoder.check_invariants()
        if plan is None:
            assert not scheduler.has_work
            return
        assert plan.rows or plan.encode or plan.forget
        result = worker.run(plan)
        if live and rng.random() < 0.1:
            abort()
        for output in scheduler.apply(plan, result):
            new = live.get(output.request_id)
            assert new is not None, "an output of a request that has ended"
            texts.setdefault(output.request_id, []).extend(output.token_ids)
            if output.finish_reason is None:
                continue
            del live[output.request_id]
            if output.finish_reason == "error":
                assert any(item.content_hash in broken for item in new.media)
                counts["errors"] += 1
            else:
                assert texts[output.request_id] == expected_output(new, setup)
                counts["done"] += 1
        encoder.check_invariants()

    def abort() -> None:
        request_id = rng.choice(list(live))
        assert scheduler.abort(request_id)
        del live[request_id]
        counts["aborted"] += 1

    for number in range(num_steps):
        if rng.random() < 0.4:
            new = random_media_request(rng, number, setup.max_model_len)
            try:
                scheduler.add(new)
            except RequestError:
                assert sum({i.content_hash: i.num_rows for i in new.media}.values()) > capacity
                continue
            counts["added"] += 1
            live[new.request_id] = new
            for item in new.media:
                towers.add(item)
        elif rng.random() < 0.1 and live:
            abort()
        else:
            step()
    for _ in range(5000):
        if not scheduler.has_work:
            break
        step()
    assert not scheduler.has_work, "livelock"
    assert not live
    # No features outlive the requests, and the rows that are kept fit.
    assert not towers.features
    assert encoder.num_rows <= max(capacity, 0)
    assert {key for key, count in towers.units.items() if count} == set(encoder._idle)
    return counts | {"units": towers.num_encoded, "reused": encoder.num_reused_rows}


def setup_config(setup: Setup):
    return setup.scheduler()[0]._config


@settings(max_examples=60, deadline=None, derandomize=True)
@given(setups(), st.integers(0, 2**32), st.integers(0, 60))
def test_media_requests_get_the_right_rows_and_leave_nothing(setup, seed, capacity):
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


def test_a_crowded_cache_reuses_and_evicts():
    counts = prove(CROWDED, 3, 1500, capacity=24)
    assert counts["done"] > 200
    assert counts["aborted"] > 20
    assert counts["reused"] > 200
