"""Random lives of requests against a model of the memory behind the pages.

The model knows nothing of the manager: it writes to each page what a forward pass would (for
position p, a digest of all tokens up to p) and, before and after each step, reads every position a
query may see through the tables that a worker would have. A page that is stale, shared wrongly,
given back too early or published too soon holds the wrong digest.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_engine.cache.groups import CacheLayout, max_window_pages
from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.cache.pages import PageRun
from mimo_engine.cache.prefix import CachedPage, PageChain, PrefixMatch

NUM_DOCUMENTS = 3


@dataclass
class Live:
    pages: SequencePages
    chain: PageChain
    full: dict[int, int] = field(default_factory=dict)
    sliding: dict[int, int] = field(default_factory=dict)

    def enter(self, runs: tuple[PageRun, PageRun]) -> None:
        for table, run in zip((self.full, self.sliding), runs, strict=True):
            table.update({run.first + i: page for i, page in enumerate(run.pages)})


class Memory:
    """What stands in the pages of both groups, by (page, offset)."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self.full: dict[tuple[int, int], int] = {}
        self.sliding: dict[tuple[int, int], int] = {}

    @staticmethod
    def contents(token_ids: list[int]) -> list[int]:
        digests, digest = [], 0
        for token_id in token_ids:
            digest = hash((digest, token_id))
            digests.append(digest)
        return digests

    def write(self, live: Live, token_ids: list[int], start: int) -> None:
        contents = self.contents(token_ids)
        for position in range(start, len(token_ids)):
            page, offset = divmod(position, self.layout.page_size)
            if self.layout.num_full_pages:
                self.full[live.full[page], offset] = contents[position]
            if self.layout.window is not None:
                self.sliding[live.sliding[page], offset] = contents[position]

    def verify(self, live: Live, token_ids: list[int], query: int, end: int) -> None:
        """Positions before `end` that a query at position `query` sees hold what they should."""
        contents = self.contents(token_ids[:end])
        window = self.layout.window
        first_visible = end if window is None else max(0, query - window + 1)
        for position in range(end):
            page, offset = divmod(position, self.layout.page_size)
            if self.layout.num_full_pages:
                found = self.full.get((live.full[page], offset))
                assert found == contents[position], f"full position {position}"
            if position >= first_visible:
                found = self.sliding.get((live.sliding[page], offset))
                assert found == contents[position], f"sliding position {position}"


def document(index: int, length: int) -> list[int]:
    rng = random.Random(index)
    return [rng.randrange(4) for _ in range(length)]


def live_a_while(
    layout: CacheLayout,
    rng: random.Random,
    num_steps: int,
    *,
    manager_class: type[CacheManager] = CacheManager,
    chain_class: type[PageChain] = PageChain,
    manager_window: int | None = None,
    prefix_caching: bool = True,
) -> int:
    """Run `num_steps` random steps, checking after each; returns the tokens that were hits."""
    manager_layout = layout
    if manager_window is not None:
        manager_layout = CacheLayout(
            page_size=layout.page_size,
            num_full_pages=layout.num_full_pages,
            num_sliding_pages=layout.num_sliding_pages,
            window=manager_window,
        )
    manager = manager_class(manager_layout, prefix_caching)
    memory = Memory(layout)
    alive: list[Live] = []
    num_hit_tokens = 0
    for _ in range(num_steps):
        draw = rng.random()
        if draw < 0.2 or not alive:
            prompt = document(rng.randrange(NUM_DOCUMENTS), rng.randrange(1, 60))
            prompt += [rng.randrange(4) for _ in range(rng.randrange(3))]
            chain = chain_class(prompt, layout.page_size)
            match = manager.find(chain)
            num_hit = len(match.entries) * layout.page_size
            assert num_hit < len(prompt)
            live = Live(manager.allocate(chain, match), chain)
            assert live.pages.num_computed == num_hit
            num_hit_tokens += num_hit
            live.enter(manager.take_new_pages(live.pages))
            memory.verify(live, prompt, num_hit, num_hit)
            alive.append(live)
        elif draw < 0.35 or len(alive) > 8:
            manager.free(alive.pop(rng.randrange(len(alive))).pages)
        else:
            step(manager, memory, alive[rng.randrange(len(alive))], rng)
        manager.check()
    for live in alive:
        manager.free(live.pages)
    manager.check()
    assert manager.full_usage().live == manager.sliding_usage().live == 0
    return num_hit_tokens


def step(manager: CacheManager, memory: Memory, live: Live, rng: random.Random) -> None:
    """Compute a chunk of the prompt, or decode with drafts of which some are rejected."""
    pages, chain = live.pages, live.chain
    start, num_known = pages.num_computed, len(chain.token_ids)
    is_decode = num_known - start == 1
    num_tokens = 1 + rng.randrange(12) if is_decode else rng.randrange(1, num_known - start + 1)
    room = manager.room(pages)
    assert manager.extend(pages, num_tokens) == (num_tokens <= room)
    if num_tokens > room:
        return
    live.enter(manager.take_new_pages(pages))
    drafts = [rng.randrange(4) for _ in range(num_tokens - 1)] if is_decode else []
    planned = (chain.token_ids + drafts)[: start + num_tokens]
    memory.verify(live, planned, start, start)
    memory.write(live, planned, start)
    for query in range(start, start + num_tokens):
        memory.verify(live, planned, query, query + 1)
    if start + num_tokens < num_known:
        manager.advance(pages, start + num_tokens)
        return
    num_accepted = rng.randrange(len(drafts) + 1)
    chain.token_ids.extend([*drafts[:num_accepted], rng.randrange(4)])
    manager.advance(pages, num_known + num_accepted)
    manager.roll_back(pages)
    assert pages.num_pages == -(-pages.num_computed // chain.page_size)


@st.composite
def layouts(draw: st.DrawFn) -> CacheLayout:
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    window = draw(st.one_of(st.none(), st.integers(1, 20)))
    num_full = draw(st.integers(8, 80))
    if window is None:
        return CacheLayout(
            page_size=page_size, num_full_pages=num_full, num_sliding_pages=0, window=None
        )
    num_sliding = draw(st.integers(max_window_pages(window, page_size) + 1, 80))
    if draw(st.integers(0, 7)) == 0:
        num_full = 0
    return CacheLayout(
        page_size=page_size,
        num_full_pages=num_full,
        num_sliding_pages=num_sliding,
        window=window,
    )


@settings(max_examples=300, deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 2**32), st.booleans())
def test_every_visible_position_is_in_its_page(layout, seed, prefix_caching):
    live_a_while(layout, random.Random(seed), 80, prefix_caching=prefix_caching)


@pytest.mark.prove
@pytest.mark.timeout(3600)
@settings(max_examples=3000, deadline=None)
@given(layouts(), st.integers(0, 2**32), st.booleans())
def test_every_visible_position_is_in_its_page_at_full_size(layout, seed, prefix_caching):
    live_a_while(layout, random.Random(seed), 400, prefix_caching=prefix_caching)


class WeakChain(PageChain):
    """Four hashes for all pages there are."""

    def _hash_page(self, parent_hash: bytes, page: int) -> bytes:
        return bytes([super()._hash_page(parent_hash, page)[0] % 4])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(layouts(), st.integers(0, 2**32))
def test_hash_collisions_do_not_corrupt_a_hit(layout, seed):
    live_a_while(layout, random.Random(seed), 80, chain_class=WeakChain)


ROOMY = CacheLayout(page_size=4, num_full_pages=60, num_sliding_pages=40, window=10)


def test_the_random_lives_have_hits():
    num_hit_tokens = sum(live_a_while(ROOMY, random.Random(seed), 200) for seed in range(5))
    assert num_hit_tokens > 2000


class HitsWithoutSlidingPages(CacheManager):
    def find(self, chain: PageChain) -> PrefixMatch:
        whole = PageChain(chain.token_ids, chain.page_size)
        entries: list[CachedPage] = []
        by_hash = {entry.page_hash: entry for entry in self._prefix.entries()}
        for page in range((len(whole.token_ids) - 1) // whole.page_size):
            if whole.page_hash(page) not in by_hash:
                break
            entries.append(by_hash[whole.page_hash(page)])
        return PrefixMatch(entries=tuple(entries), first_sliding=len(entries))


class ForgetsToSendSwappedPages(CacheManager):
    def _publish(self, pages: SequencePages) -> None:
        num_sent = pages.num_sent
        super()._publish(pages)
        pages.num_sent = num_sent


class RollsBackOnePageTooMany(CacheManager):
    def roll_back(self, pages: SequencePages) -> None:
        super().roll_back(pages)
        if pages.num_pages > len(pages.published) and pages.full:
            pages.num_pages -= 1
            self._full_pool.release(pages.full.pop())
            self._sliding_pool.release(pages.sliding.pop())
            pages.num_sent = min(pages.num_sent, pages.num_pages)


def assert_caught(**bug) -> None:
    rng = random.Random(0)
    with pytest.raises((AssertionError, KeyError, IndexError)):
        live_a_while(ROOMY, rng, 4000, **bug)


def test_a_window_that_is_one_too_short_is_caught():
    assert_caught(manager_window=9)


@pytest.mark.parametrize(
    "manager_class",
    [HitsWithoutSlidingPages, ForgetsToSendSwappedPages, RollsBackOnePageTooMany],
)
def test_a_seeded_bug_is_caught(manager_class):
    assert_caught(manager_class=manager_class)
