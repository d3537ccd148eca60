"""Random lives of requests against a model of the memory behind the pages.

The model knows nothing of the manager: it writes to each page what a forward pass would (for
position p, a digest of all tokens up to p) and, before and after each step, reads every position a
query may see through the tables that a worker would have. A page that is stale, shared wrongly,
given back too early or published too soon holds the wrong digest. Draft layers write beside it what
draft_rows.py says, after every step that brings tokens, as many layers as chance has it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from draft_rows import DraftRows, Pass, digests_of
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
    hidden: dict[int, int] = field(default_factory=dict)
    """By position: digests of what the request has computed itself."""

    def enter(self, runs: tuple[PageRun, PageRun]) -> None:
        for table, run in zip((self.full, self.sliding), runs, strict=True):
            table.update({run.first + i: page for i, page in enumerate(run.pages)})


class Memory:
    """What stands in the pages of both groups, by (page, offset)."""

    def __init__(self, layout: CacheLayout) -> None:
        self.layout = layout
        self.full: dict[tuple[int, int], int] = {}
        self.sliding: dict[tuple[int, int], int] = {}
        self.drafts = DraftRows(page_size=layout.page_size, window=layout.window or 1)

    def write(self, live: Live, token_ids: list[int], start: int) -> None:
        contents = digests_of(token_ids)
        for position in range(start, len(token_ids)):
            page, offset = divmod(position, self.layout.page_size)
            if self.layout.num_full_pages:
                self.full[live.full[page], offset] = contents[position]
            if self.layout.window is not None:
                self.sliding[live.sliding[page], offset] = contents[position]
            live.hidden[position] = contents[position]

    def verify(self, live: Live, token_ids: list[int], query: int, end: int) -> None:
        """Positions before `end` that a query at position `query` sees hold what they should."""
        contents = digests_of(token_ids[:end])
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


def random_prompt(rng: random.Random, texts: list[list[int]]) -> list[int]:
    """A well-known beginning and some tokens more; of `texts`, it is the next turn of one, or what
    might have come instead."""
    if texts and rng.random() < 0.5:
        prompt = list(rng.choice(texts[-10:]))
        if rng.random() < 0.3:
            prompt = prompt[: rng.randrange(1, len(prompt) + 1)]
        prompt += [rng.randrange(4)]
    else:
        prompt = document(rng.randrange(NUM_DOCUMENTS), rng.randrange(1, 60))
    return prompt + [rng.randrange(4) for _ in range(rng.randrange(3))]


def check_hit_with_drafts(manager: CacheManager, chain: PageChain, match: PrefixMatch) -> None:
    """It is the hit that there is without drafts, or a page shorter for the sake of draft rows."""
    manager._prefix._has_drafts = False
    without = manager.find(chain)
    manager._prefix._has_drafts = True
    num_lost = len(without.entries) - len(match.entries)
    assert num_lost in (0, 1)
    assert match.entries == without.entries[: len(match.entries)]
    if num_lost:
        assert match.num_draft_layers > without.num_draft_layers


def live_a_while(
    layout: CacheLayout,
    rng: random.Random,
    num_steps: int,
    *,
    manager_class: type[CacheManager] = CacheManager,
    chain_class: type[PageChain] = PageChain,
    manager_window: int | None = None,
    prefix_caching: bool = True,
    num_draft_layers: int = 0,
) -> tuple[int, Memory]:
    """Run `num_steps` random steps, checking after each; returns the tokens that were hits, and the
    memory as it is then."""
    manager_layout = layout
    if manager_window is not None:
        manager_layout = CacheLayout(
            page_size=layout.page_size,
            num_full_pages=layout.num_full_pages,
            num_sliding_pages=layout.num_sliding_pages,
            window=manager_window,
        )
    manager = manager_class(manager_layout, prefix_caching, has_drafts=num_draft_layers > 0)
    memory = Memory(layout)
    alive: list[Live] = []
    texts: list[list[int]] = []
    num_hit_tokens = 0
    for _ in range(num_steps):
        draw = rng.random()
        if draw < 0.2 or not alive:
            prompt = random_prompt(rng, texts if num_draft_layers else [])
            chain = chain_class(prompt, layout.page_size)
            match = manager.find(chain)
            if num_draft_layers:
                check_hit_with_drafts(manager, chain, match)
            num_hit = len(match.entries) * layout.page_size
            assert num_hit < len(prompt)
            live = Live(manager.allocate(chain, match), chain)
            assert live.pages.num_computed == num_hit
            num_hit_tokens += num_hit
            live.enter(manager.take_new_pages(live.pages))
            memory.verify(live, prompt, num_hit, num_hit)
            alive.append(live)
            texts.append(chain.token_ids)
        elif draw < 0.35 or len(alive) > 8:
            manager.free(alive.pop(rng.randrange(len(alive))).pages)
        else:
            live = alive[rng.randrange(len(alive))]
            step(manager, memory, live, rng, num_draft_layers)
        manager.check()
    for live in alive:
        manager.free(live.pages)
    manager.check()
    assert manager.full_usage().live == manager.sliding_usage().live == 0
    return num_hit_tokens, memory


def step(
    manager: CacheManager, memory: Memory, live: Live, rng: random.Random, num_draft_layers: int
) -> None:
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
    # Most passes are like the one before: only then do they go on where that ended.
    depth = num_draft_layers
    if depth and rng.random() < 0.2:
        depth = rng.randrange(depth + 1)
    draft_start = visible_from = 0
    if depth:
        draft_start, visible_from = manager.draft_start(pages, num_known, depth)
    chain.token_ids.extend([*drafts[:num_accepted], rng.randrange(4)])
    if depth:
        memory.drafts.run([draft_pass(live, draft_start, visible_from, depth, rng)])
    manager.advance(pages, num_known + num_accepted)
    manager.roll_back(pages)
    if depth:
        manager.set_drafted(pages, draft_start, visible_from, depth, is_kept=False)
    assert pages.num_pages == -(-pages.num_computed // chain.page_size)


def draft_pass(live: Live, start: int, visible_from: int, depth: int, rng: random.Random) -> Pass:
    known = live.chain.token_ids
    return Pass(
        table=live.sliding,
        known=list(known),
        digests=digests_of(known),
        hidden={row: live.hidden.get(row) for row in range(start, len(known) - 1)},
        guesses=[rng.randrange(4) for _ in range(depth)],
        start=start,
        visible_from=visible_from,
        num_cached=live.pages.num_cached,
    )


@st.composite
def layouts(draw: st.DrawFn, *, has_window: bool = False) -> CacheLayout:
    page_size = draw(st.sampled_from([1, 2, 4, 8]))
    windows = st.integers(1, 20)
    window = draw(windows if has_window else st.one_of(st.none(), windows))
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


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layouts(has_window=True), st.integers(0, 2**32), st.integers(1, 5))
def test_no_visible_draft_row_is_of_another_continuation(layout, seed, num_draft_layers):
    live_a_while(layout, random.Random(seed), 80, num_draft_layers=num_draft_layers)


@pytest.mark.prove
@pytest.mark.timeout(3600)
@settings(max_examples=3000, deadline=None)
@given(layouts(has_window=True), st.integers(0, 2**32), st.integers(1, 5))
def test_no_visible_draft_row_is_of_another_continuation_at_full_size(layout, seed, num_layers):
    live_a_while(layout, random.Random(seed), 400, num_draft_layers=num_layers)


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
    num_hit_tokens = sum(live_a_while(ROOMY, random.Random(seed), 200)[0] for seed in range(5))
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
