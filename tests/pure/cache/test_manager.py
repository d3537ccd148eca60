"""The rules of the cache, one example each. Pages of 4 tokens, a window of 6 unless said."""

import pytest

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.cache.manager import CacheManager, SequencePages
from mimo_engine.cache.pages import NO_PAGE, PageRun
from mimo_engine.cache.prefix import CachedPage, PageChain


def make(
    num_full: int = 32,
    num_sliding: int = 32,
    *,
    window: int | None = 6,
    prefix_caching: bool = True,
) -> CacheManager:
    layout = CacheLayout(
        page_size=4, num_full_pages=num_full, num_sliding_pages=num_sliding, window=window
    )
    return CacheManager(layout, prefix_caching)


def compute(
    manager: CacheManager,
    tokens: list[int],
    *,
    num_prompt_tokens: int | None = None,
    max_chunk_len: int = 1000,
) -> SequencePages:
    """A live request that has computed all of `tokens`."""
    chain = PageChain(tokens[:num_prompt_tokens], 4)
    chain.token_ids[:] = tokens
    pages = manager.allocate(chain, manager.find(chain))
    while pages.num_computed < len(tokens):
        num_tokens = min(max_chunk_len, len(tokens) - pages.num_computed)
        assert manager.extend(pages, num_tokens)
        manager.take_new_pages(pages)
        manager.advance(pages, pages.num_computed + num_tokens)
        manager.check()
    return pages


def hit_len(manager: CacheManager, tokens: list[int]) -> int:
    return 4 * len(manager.find(PageChain(tokens, 4)).entries)


def occupy(manager: CacheManager, num_pages: int) -> SequencePages:
    """A live request that takes `num_pages` pages of both groups."""
    chain = PageChain([999], 4)
    pages = manager.allocate(chain, manager.find(chain))
    assert manager.extend(pages, 4 * num_pages)
    return pages


def lose_sliding_pages(manager: CacheManager, entries: list[CachedPage]) -> None:
    """As if just these idle pages had been evicted."""
    for entry in entries:
        assert entry.sliding_page is not None
        manager._prefix._forget_idle_sliding(entry)
        manager._sliding_pool.release(entry.sliding_page)
        entry.sliding_page = None


def test_a_later_request_takes_the_pages_of_a_finished_one():
    manager = make()
    first = compute(manager, list(range(20)))
    full, sliding = list(first.full), [entry.sliding_page for entry in first.published]
    manager.free(first)
    chain = PageChain([*range(18), 77, 78], 4)
    match = manager.find(chain)
    second = manager.allocate(chain, match)
    assert second.num_computed == 16
    assert second.full == full[:4]
    # Query 16 sees positions 11 ... 16: pages 2 and 3.
    assert second.sliding == [NO_PAGE, NO_PAGE, *sliding[2:4]]
    assert manager.extend(second, 4)
    runs = manager.take_new_pages(second)
    assert runs == (PageRun(0, tuple(second.full)), PageRun(2, tuple(second.sliding[2:])))
    manager.check()


def test_a_live_request_shares_its_pages_too():
    manager = make()
    compute(manager, list(range(12)))
    chain = PageChain(list(range(16)), 4)
    second = manager.allocate(chain, manager.find(chain))
    assert second.num_computed == 12
    assert manager.full_usage().live == 3
    manager.check()


def test_the_whole_prompt_is_never_a_hit():
    manager = make()
    manager.free(compute(manager, list(range(16))))
    assert hit_len(manager, list(range(16))) == 12
    assert hit_len(manager, list(range(17))) == 16


def test_a_page_is_known_by_all_that_stands_before_it():
    manager = make()
    manager.free(compute(manager, [0, 0, 0, 0, 1, 1, 1, 1, 2]))
    assert hit_len(manager, [9, 0, 0, 0, 1, 1, 1, 1, 2]) == 0
    assert hit_len(manager, [1, 1, 1, 1, 2]) == 0


def test_media_under_a_page_are_part_of_its_name():
    manager = make()
    tokens = [5] * 12
    chain = PageChain(tokens, 4, {1: b"cat"})
    pages = manager.allocate(chain, manager.find(chain))
    manager.extend(pages, 12)
    manager.advance(pages, 12)
    assert len(manager.find(PageChain(tokens, 4, {1: b"cat"})).entries) == 2
    assert len(manager.find(PageChain(tokens, 4, {1: b"dog"})).entries) == 1
    assert len(manager.find(PageChain(tokens, 4)).entries) == 1


def test_a_page_is_published_when_its_last_position_is_computed():
    manager = make()
    chain = PageChain(list(range(10)), 4)
    pages = manager.allocate(chain, manager.find(chain))
    manager.extend(pages, 10)
    assert hit_len(manager, list(range(10))) == 0
    manager.advance(pages, 7)
    assert hit_len(manager, list(range(10))) == 4
    manager.advance(pages, 8)
    assert hit_len(manager, list(range(10))) == 8


def test_a_hit_needs_pages_of_both_groups():
    manager = make(num_full=32, num_sliding=6)
    # Positions 0 ... 19 in 5 pages. Their sliding pages 0, 1, 2 were passed, 3 and 4 end it.
    manager.free(compute(manager, list(range(20)), num_prompt_tokens=0))
    assert hit_len(manager, list(range(30))) == 20
    other = occupy(manager, 2)
    # One sliding page was free; one that the window passed made room for the other.
    assert hit_len(manager, list(range(30))) == 20
    manager.free(other)
    other = occupy(manager, 6)
    assert hit_len(manager, list(range(30))) == 0
    manager.check()


def test_without_the_last_window_a_hit_falls_back_to_an_earlier_one():
    manager = make(num_full=32, num_sliding=16)
    pages = compute(manager, list(range(40)), num_prompt_tokens=20)
    manager.free(pages)
    # Take the two sliding pages of the end away; those around the prompt's end remain.
    lose_sliding_pages(manager, pages.published[8:])
    manager.check()
    assert hit_len(manager, list(range(50))) == 32
    lose_sliding_pages(manager, pages.published[5:8])
    assert hit_len(manager, list(range(50))) == 20


def test_recomputed_sliding_pages_heal_an_entry():
    manager = make(num_sliding=8)
    manager.free(compute(manager, list(range(20))))
    manager.free(occupy(manager, 8))
    assert hit_len(manager, list(range(20))) == 0
    manager.free(compute(manager, list(range(20))))
    assert hit_len(manager, list(range(24))) == 20


def test_two_that_compute_the_same_page_end_up_with_one():
    manager = make()
    chains = [PageChain(list(range(9)), 4) for _ in range(2)]
    both = [manager.allocate(chain, manager.find(chain)) for chain in chains]
    for pages in both:
        assert manager.extend(pages, 9)
        manager.take_new_pages(pages)
    assert manager.full_usage().live == 6
    for pages in both:
        manager.advance(pages, 9)
    manager.check()
    assert manager.full_usage().live == 4
    assert both[0].full[:2] == both[1].full[:2]
    # The second one's tables have changed from page 0 on, and are sent again.
    assert manager.take_new_pages(both[0]) == (PageRun(0), PageRun(0))
    full, sliding = manager.take_new_pages(both[1])
    assert (full.first, full.pages) == (0, tuple(both[1].full))
    assert (sliding.first, sliding.pages) == (1, tuple(both[1].sliding[1:]))


@pytest.mark.parametrize(("num_computed", "first_page"), [(8, 0), (9, 1), (12, 1), (13, 2)])
def test_a_sliding_page_is_kept_while_the_next_query_sees_one_of_its_positions(
    num_computed, first_page
):
    # Query 9 sees 4 ... 9; query 8 sees 3 ... 8.
    manager = make(prefix_caching=False)
    pages = compute(manager, list(range(num_computed)))
    assert pages.first_sliding == first_page
    assert manager.sliding_usage().live == -(-num_computed // 4) - first_page


def test_extend_is_all_or_nothing():
    manager = make(num_full=4, num_sliding=8)
    chain = PageChain(list(range(30)), 4)
    pages = manager.allocate(chain, manager.find(chain))
    assert manager.room(pages) == 16
    assert not manager.extend(pages, 17)
    assert manager.full_usage().live == manager.sliding_usage().live == 0
    assert manager.extend(pages, 16)
    assert manager.room(pages) == 16
    assert not manager.extend(pages, 17)


def test_roll_back_drops_the_pages_of_rejected_rows_and_no_more():
    manager = make()
    chain = PageChain(list(range(6)), 4)
    pages = manager.allocate(chain, manager.find(chain))
    manager.extend(pages, 6)
    manager.advance(pages, 6)
    before = manager.take_new_pages(pages), list(pages.full)
    manager.extend(pages, 8)
    added = pages.full[2:]
    assert len(added) == 2
    manager.take_new_pages(pages)
    chain.token_ids.extend([6, 7])
    manager.advance(pages, 8)
    manager.roll_back(pages)
    assert pages.full == before[1]
    manager.check()
    manager.extend(pages, 8)
    assert pages.full[2:] == added
    assert manager.take_new_pages(pages)[0] == PageRun(2, tuple(added))


def test_the_least_recently_used_prefix_goes_first_and_from_its_end():
    manager = make(num_full=6)
    old, new = list(range(12)), list(range(100, 112))
    manager.free(compute(manager, old))
    manager.free(compute(manager, new))
    occupy(manager, 1)
    assert (hit_len(manager, [*old, 0]), hit_len(manager, [*new, 0])) == (8, 12)
    occupy(manager, 2)
    assert (hit_len(manager, [*old, 0]), hit_len(manager, [*new, 0])) == (0, 12)
    occupy(manager, 1)
    assert hit_len(manager, [*new, 0]) == 8


def test_a_hit_makes_a_prefix_recent():
    manager = make(num_full=6)
    first, second = list(range(12)), list(range(100, 112))
    manager.free(compute(manager, first))
    manager.free(compute(manager, second))
    chain = PageChain([*first, 0], 4)
    manager.free(manager.allocate(chain, manager.find(chain)))
    occupy(manager, 3)
    assert (hit_len(manager, [*first, 0]), hit_len(manager, [*second, 0])) == (12, 0)


def test_a_long_prompt_does_not_push_out_the_ends_of_others():
    manager = make(num_full=200, num_sliding=40)
    short = [list(range(100 * i, 100 * i + 12)) for i in range(1, 5)]
    for tokens in short:
        manager.free(compute(manager, tokens))
    for start in (1000, 2000, 3000):
        manager.free(compute(manager, list(range(start, start + 200)), max_chunk_len=16))
    assert [hit_len(manager, [*tokens, 0]) for tokens in short] == [12] * 4


def test_the_end_of_the_prompt_is_kept_when_the_answer_was_long():
    manager = make(num_full=200, num_sliding=30)
    tokens = list(range(400))
    chain = PageChain(tokens[:22], 4)
    pages = manager.allocate(chain, manager.find(chain))
    manager.extend(pages, 22)
    manager.advance(pages, 22)
    for position in range(22, 400):
        assert manager.extend(pages, 1)
        chain.token_ids.append(tokens[position])
        manager.advance(pages, position + 1)
    manager.free(pages)
    # The next turn repeats the prompt, and not the answer.
    assert hit_len(manager, [*tokens[:22], 7, 7, 7]) == 20
    # Even when the template changed the prompt's last tokens.
    assert hit_len(manager, [*tokens[:19], 7, 7, 7]) == 16


def test_without_prefix_caching_nothing_outlives_its_request():
    manager = make(prefix_caching=False)
    manager.free(compute(manager, list(range(20))))
    assert hit_len(manager, list(range(20))) == 0
    assert manager.full_usage().free == manager.sliding_usage().free == 32


def test_a_model_without_sliding_layers_needs_full_pages_only():
    manager = make(num_sliding=0, window=None)
    first = compute(manager, list(range(20)))
    assert first.sliding == []
    manager.free(first)
    assert hit_len(manager, list(range(30))) == 20


def test_a_model_without_full_layers_has_no_limit_of_length_and_no_prefix_cache():
    manager = make(num_full=0, num_sliding=4)
    chain = PageChain(list(range(3)), 4)
    pages = manager.allocate(chain, manager.find(chain))
    for position in range(200):
        assert manager.extend(pages, 1)
        manager.advance(pages, position + 1)
    manager.check()
    assert not manager.prefix_caching
    manager.free(pages)
    assert manager.sliding_usage().free == 4


def test_live_idle_and_free_pages_are_all_pages():
    manager = make()
    compute(manager, list(range(10)))
    manager.free(compute(manager, list(range(50, 70))))
    for usage in (manager.full_usage(), manager.sliding_usage()):
        assert usage.live + usage.idle + usage.free == usage.total == 32
    assert (manager.full_usage().live, manager.full_usage().idle) == (3, 5)
