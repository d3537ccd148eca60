"""What draft layers change about prefix hits: at most a page of their length, and what comes with
them. The layers run in every step here, all of them, and no page is evicted."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from test_manager_properties import random_prompt

from mimo_engine.cache.groups import CacheLayout, num_pages_for
from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.cache.prefix import PageChain, PrefixMatch


def make(page_size: int, window: int, *, has_drafts: bool) -> CacheManager:
    layout = CacheLayout(
        page_size=page_size, num_full_pages=4000, num_sliding_pages=4000, window=window
    )
    return CacheManager(layout, prefix_caching=True, has_drafts=has_drafts)


@dataclass
class Life:
    """One request from its prompt to the end of its answer."""

    manager: CacheManager
    prompt: list[int]
    num_layers: int
    match: PrefixMatch = field(init=False)
    pages: SequencePages = field(init=False)
    visible_from: int | None = None
    """First draft row that the first pass may see."""

    def __post_init__(self) -> None:
        chain = PageChain(self.prompt, self.manager.layout.page_size)
        self.match = self.manager.find(chain)
        self.pages = self.manager.allocate(chain, self.match)

    @property
    def text(self) -> list[int]:
        return self.pages.chain.token_ids

    def step(self, rng: random.Random, num_tokens: int) -> None:
        """All that is known is computed with drafts behind it, and brings `num_tokens` tokens."""
        manager, pages = self.manager, self.pages
        num_known = len(self.text)
        assert manager.extend(pages, num_known - pages.num_computed + self.num_layers)
        manager.take_new_pages(pages)
        start, visible_from = manager.draft_start(pages, num_known, self.num_layers)
        if self.visible_from is None:
            self.visible_from = visible_from
        self.text.extend(rng.randrange(4) for _ in range(num_tokens))
        manager.advance(pages, num_known + num_tokens - 1)
        manager.roll_back(pages)
        manager.set_drafted(pages, start, visible_from, self.num_layers, is_kept=False)

    def end(self) -> list[int]:
        self.manager.free(self.pages)
        return self.text


def serve(manager: CacheManager, seed: int, num_layers: int) -> list[PrefixMatch]:
    """The hits of requests that come and go, always the same ones."""
    rng = random.Random(seed)
    alive: list[Life] = []
    texts: list[list[int]] = []
    hits = []
    for _ in range(80):
        if rng.random() < 0.3:
            life = Life(manager, random_prompt(rng, texts), num_layers)
            hits.append(life.match)
            alive.append(life)
            texts.append(life.text)
        if alive and rng.random() < 0.2:
            alive.pop(rng.randrange(len(alive))).end()
        for life in alive:
            life.step(rng, rng.randrange(1, num_layers + 2))
    manager.check()
    return hits


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 20), st.integers(1, 5), st.integers(0, 2**32))
def test_a_hit_is_as_long_as_without_drafts_or_a_page_shorter(page_size, window, layers, seed):
    plain = serve(make(page_size, window, has_drafts=False), seed, layers)
    drafted = serve(make(page_size, window, has_drafts=True), seed, layers)
    for without, match in zip(plain, drafted, strict=True):
        num_lost = len(without.entries) - len(match.entries)
        assert num_lost in (0, 1)
        # The page is given up for the draft rows of the one before it, and for nothing else.
        assert match.num_draft_layers in ((layers,) if num_lost else (0, layers))


def test_the_hits_compared_are_many_and_some_are_shorter():
    plain = serve(make(4, 10, has_drafts=False), 0, 3)
    drafted = serve(make(4, 10, has_drafts=True), 0, 3)
    lengths = [(len(a.entries), len(b.entries)) for a, b in zip(plain, drafted, strict=True)]
    assert sum(a for a, _ in lengths) > 50
    assert 2 < sum(a - b for a, b in lengths) < len(lengths)
    assert sum(match.num_draft_layers == 3 for match in drafted) > 5


def test_a_pass_of_fewer_layers_takes_no_draft_rows_from_a_shared_page():
    manager, rng = make(4, 10, has_drafts=True), random.Random(0)
    first = Life(manager, list(range(100, 114)), 3)
    for _ in range(6):
        first.step(rng, 4)
    text = list(first.end())
    entries = manager.find(PageChain(text, 4)).entries
    before = [entry.drafted for entry in entries]
    assert [len(drafted) for drafted in before[-2:]] == [3, 3]
    # Another one hits and drafts less, as it does near its end.
    other = Life(manager, text, 1)
    assert other.match.num_draft_layers == 3
    other.step(rng, 1)
    other.end()
    assert [entry.drafted for entry in entries] == before
    assert manager.find(PageChain(text, 4)).num_draft_layers == 3


def converse(
    page_size: int, more_window: int, num_layers: int, prompt_len: int, seed: int, num_turns: int
) -> None:
    # The last rows that are final end at most num_layers - 1 rows before the end: a page back.
    num_layers = min(num_layers, page_size + 1)
    # In a shorter window, a page may be passed before its rows are final.
    window = 2 * num_layers + more_window
    manager = make(page_size, window, has_drafts=True)
    rng = random.Random(seed)
    text: list[int] = []
    drafted_from = 0
    for turn in range(num_turns):
        prompt = text + [rng.randrange(4) for _ in range(prompt_len if turn == 0 else 3)]
        life = Life(manager, prompt, num_layers)
        num_hit = len(life.match.entries) * page_size
        assert num_hit >= len(text) - 2 * page_size
        for _ in range(rng.randrange(1, 12)):
            life.step(rng, rng.randrange(1, num_layers + 2))
        assert life.visible_from is not None
        # Nothing is missing but what no turn has computed, before the window of the first prompt;
        # and all of it where that has no whole page yet whose last rows are final.
        first_whole = num_pages_for(drafted_from, page_size) * page_size
        final_end = (len(text) - num_layers) // page_size * page_size
        known_from = first_whole if first_whole < final_end else num_hit
        assert life.visible_from <= max(0, len(prompt) - window, known_from)
        drafted_from = max(drafted_from, life.visible_from)
        text = life.end()
    manager.check()


conversations = given(
    st.sampled_from([2, 4, 8]),
    st.integers(1, 30),
    st.integers(1, 5),
    st.integers(1, 60),
    st.integers(0, 2**32),
)


@settings(max_examples=50, deadline=None, derandomize=True)
@conversations
def test_the_second_turn_of_a_conversation_sees_the_draft_rows_of_a_window(
    page_size, more_window, num_layers, prompt_len, seed
):
    converse(page_size, more_window, num_layers, prompt_len, seed, 2)


@settings(max_examples=50, deadline=None, derandomize=True, phases=[Phase.generate])
@conversations
def test_every_turn_of_a_conversation_sees_the_draft_rows_of_a_window(
    page_size, more_window, num_layers, prompt_len, seed
):
    converse(page_size, more_window, num_layers, prompt_len, seed, 5)


def test_a_page_that_was_computed_again_has_draft_rows_for_the_turn_after():
    manager, rng = make(4, 12, has_drafts=True), random.Random(0)
    text: list[int] = []
    for num_new, num_steps in ((22, 3), (3, 3), (1, 1)):
        life = Life(manager, text + [rng.randrange(4) for _ in range(num_new)], 3)
        for _ in range(num_steps):
            life.step(rng, 1)
        text = life.end()
    # Rows 20 ... 23 were not final when the first turn ended: the second one computed their page
    # anew, and its own copy was lost with it.
    assert life.visible_from is not None
    assert life.visible_from <= len(life.prompt) - 12 == 20
