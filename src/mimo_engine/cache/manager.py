"""Which request owns which page, in both groups.

    free pages          in the pool
    private pages       one live request: pages it has not finished computing
    published pages     known to the prefix cache; held by any number of live requests, or idle

The life of a request's pages: `find` and `allocate` (with what the prefix cache has), then for
each step `extend`, `take_new_pages`, `advance` (and `roll_back` of rows that were rejected), at
last `free`. Nothing here costs time proportional to the context in a step of plain decoding.

Draft layers keep K and V in the sliding pages, for rows that the manager is told of: `draft_start`
says where a pass of them has to begin, `set_drafted` takes in that it was made.

Must hold after every call: used + free = total in each group, used being live and idle pages; a
page is in two live requests only if it is published; nobody writes to a published page, because a
page is published when it is complete and computed. But for draft rows: those are written by the
request that computed the page, and others read them only from when they are final.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field

from mimo_engine.cache.groups import CacheLayout, max_window_pages, num_pages_for
from mimo_engine.cache.pages import NO_PAGE, PagePool, PageRun
from mimo_engine.cache.prefix import CachedPage, PageChain, PrefixCache, PrefixMatch

__all__ = ["CacheManager", "GroupUsage", "SequencePages"]

_NEVER = sys.maxsize
_NO_RUNS = (PageRun(0), PageRun(0))


@dataclass(slots=True, eq=False)
class SequencePages:
    """The pages of one live request. Compared by identity; only the manager changes it."""

    chain: PageChain
    num_computed: int = 0
    """Positions 0 ... num_computed - 1 have their K and V in the pages."""
    num_pages: int = 0
    """Logical pages with storage."""
    full: list[int] = field(default_factory=list)
    sliding: list[int] = field(default_factory=list)
    """By logical page. Sliding pages before `first_sliding` were given back: NO_PAGE."""
    first_sliding: int = 0
    published: list[CachedPage] = field(default_factory=list)
    """Entries of the first logical pages; these tables hold the entries' pages."""
    num_sent: int = 0
    """Logical pages that `take_new_pages` has handed out as they stand."""
    publish_at: int = _NEVER
    slide_at: int = _NEVER
    """Values of num_computed from which there is something to publish, or to give back."""
    num_cached: int = 0
    """Positions that came from the prefix cache."""
    drafted_from: int = 0
    drafted_to: int = 0
    """Rows from the one to before the other have K and V of the first `num_draft_layers` draft
    layers, computed with tokens that are certain."""
    num_draft_layers: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupUsage:
    """Pages of one group: live + idle + free = total."""

    live: int
    """Held by requests."""
    idle: int
    """Cached for later requests, and free for the taking."""
    free: int
    total: int


class CacheManager:
    """Allocates, extends, slides, rolls back and frees the pages of requests."""

    def __init__(
        self, layout: CacheLayout, prefix_caching: bool, *, has_drafts: bool = False
    ) -> None:
        """has_drafts: draft layers have K and V in the sliding pages."""
        assert not has_drafts or layout.window is not None
        self._has_drafts = has_drafts
        self.layout = layout
        self._page_size = layout.page_size
        self._has_full = layout.num_full_pages > 0
        self._has_sliding = layout.num_sliding_pages > 0
        # An entry of the prefix cache lives and dies with its full page.
        self._prefix_caching = prefix_caching and self._has_full
        self.reset()

    def reset(self) -> None:
        """As new: no page is held, and none cached. Whatever state a call was broken off in."""
        self._full_pool = PagePool(self.layout.num_full_pages)
        self._sliding_pool = PagePool(self.layout.num_sliding_pages)
        self._prefix = PrefixCache(
            self._full_pool,
            self._sliding_pool,
            page_size=self._page_size,
            window=self.layout.window,
            has_drafts=self._has_drafts,
        )
        self._live: dict[SequencePages, None] = {}

    @property
    def prefix_caching(self) -> bool:
        return self._prefix_caching

    @property
    def num_available_full(self) -> int:
        """Full pages that can be had: free, or idle in the prefix cache."""
        return self._full_pool.num_free + self._prefix.num_idle_full

    @property
    def num_available_sliding(self) -> int:
        return self._sliding_pool.num_free + self._prefix.num_idle_sliding

    def find(self, chain: PageChain) -> PrefixMatch:
        """What the prefix cache has of `chain`; takes nothing."""
        return self._prefix.find(chain) if self._prefix_caching else PrefixMatch()

    def can_start(self, num_tokens: int, match: PrefixMatch, *, spare_pages: int) -> bool:
        """Whether full pages for all of `num_tokens` tokens can be had, and `spare_pages` more.

        num_tokens counts those of `match`.
        """
        if not self._has_full:
            return True
        fresh = num_pages_for(num_tokens, self._page_size) - len(match.entries)
        return fresh + match.num_idle_full + spare_pages <= self.num_available_full

    def can_start_sliding(self, num_tokens: int) -> bool:
        """Whether the window of a request, and one page to go on, can be had now. O(1)."""
        window = self.layout.window
        if window is None:
            return True
        num_pages = num_pages_for(num_tokens, self._page_size)
        return self.num_available_sliding > min(
            num_pages, max_window_pages(window, self._page_size)
        )

    def allocate(self, chain: PageChain, match: PrefixMatch) -> SequencePages:
        """Start a request on `match`, which must be fresh from `find`. No new page is taken."""
        self._prefix.take(match)
        num_pages = len(match.entries)
        num_cached = num_pages * self._page_size
        pages = SequencePages(
            chain,
            num_computed=num_cached,
            num_pages=num_pages,
            num_cached=num_cached,
            drafted_from=match.drafted_from * self._page_size,
            drafted_to=num_cached,
            num_draft_layers=match.num_draft_layers,
        )
        pages.published.extend(match.entries)
        pages.full.extend(entry.full_page for entry in match.entries)
        if self._prefix_caching:
            pages.publish_at = pages.num_computed + self._page_size
        if self._has_sliding:
            pages.first_sliding = match.first_sliding
            pages.sliding.extend([NO_PAGE] * match.first_sliding)
            for entry in match.entries[match.first_sliding :]:
                assert entry.sliding_page is not None
                pages.sliding.append(entry.sliding_page)
            pages.slide_at = self._next_slide(pages)
        self._live[pages] = None
        return pages

    def room(self, pages: SequencePages) -> int:
        """By how many tokens `pages` could be extended now."""
        available = _NEVER // self._page_size
        if self._has_full:
            available = self.num_available_full
        if self._has_sliding:
            available = min(available, self.num_available_sliding)
        return (pages.num_pages + available) * self._page_size - pages.num_computed

    def extend(self, pages: SequencePages, num_tokens: int) -> bool:
        """Pages for `num_tokens` more positions in both groups; False: too few, and no change."""
        count = num_pages_for(pages.num_computed + num_tokens, self._page_size) - pages.num_pages
        if count <= 0:
            return True
        if (self._has_full and count > self.num_available_full) or (
            self._has_sliding and count > self.num_available_sliding
        ):
            return False
        # Sliding pages last: evicting a full page may free a sliding one.
        if self._has_full:
            while self._full_pool.num_free < count:
                self._prefix.evict_full()
            pages.full.extend(self._full_pool.acquire(count))
        if self._has_sliding:
            while self._sliding_pool.num_free < count:
                self._prefix.evict_sliding()
            pages.sliding.extend(self._sliding_pool.acquire(count))
        pages.num_pages += count
        return True

    def take_new_pages(self, pages: SequencePages) -> tuple[PageRun, PageRun]:
        """The (full, sliding) runs that a copy of the tables lacks since the last call."""
        first = pages.num_sent
        if first == pages.num_pages:
            return _NO_RUNS
        pages.num_sent = pages.num_pages
        first_sliding = max(first, pages.first_sliding)
        return (
            PageRun(first, tuple(pages.full[first:])),
            PageRun(first_sliding, tuple(pages.sliding[first_sliding:])),
        )

    def advance(self, pages: SequencePages, num_computed: int) -> None:
        """Positions before `num_computed` are computed now: publish, and let the window pass."""
        assert pages.num_computed <= num_computed <= pages.num_pages * self._page_size
        pages.num_computed = num_computed
        if num_computed >= pages.publish_at:
            self._publish(pages)
        if num_computed >= pages.slide_at:
            self._slide(pages)

    def roll_back(self, pages: SequencePages) -> None:
        """Give back the pages past num_computed: their rows were rejected."""
        num_kept = num_pages_for(pages.num_computed, self._page_size)
        assert num_kept >= len(pages.published)
        # Last page first, so that the next extension is given the same pages in the same order.
        while pages.num_pages > num_kept:
            pages.num_pages -= 1
            if self._has_full:
                self._full_pool.release(pages.full.pop())
            if self._has_sliding:
                self._sliding_pool.release(pages.sliding.pop())
        pages.num_sent = min(pages.num_sent, num_kept)

    def draft_start(
        self, pages: SequencePages, num_computed: int, num_layers: int
    ) -> tuple[int, int]:
        """(first row that a pass of `num_layers` draft layers must compute, first row it may see)
        so that all rows of the window before `num_computed` are there that can be.

        A pass that follows the last one goes on where that ended. After a pause, or with more
        layers, the whole window is computed, as far as the request has computed it itself: of
        positions from the prefix cache nobody has the target's hidden states.
        """
        assert self.layout.window is not None
        oldest = max(num_computed - self.layout.window, pages.num_cached)
        if num_layers <= pages.num_draft_layers and pages.drafted_to >= oldest:
            return pages.drafted_to, pages.drafted_from
        return oldest, oldest

    def set_drafted(
        self, pages: SequencePages, start: int, visible_from: int, num_layers: int, *, is_kept: bool
    ) -> None:
        """Draft layers have computed rows start ... num_computed - 1. is_kept: the last ones stay
        as they are, although the tokens after them were guessed."""
        certain = max(visible_from, pages.num_computed - (num_layers - 1))
        pages.num_draft_layers = num_layers
        pages.drafted_from = visible_from
        pages.drafted_to = pages.num_computed if is_kept else certain
        page_size = self._page_size
        # Pages that end among the rows of the pass before may have waited for tokens after them.
        first = max(0, start - num_layers) // page_size
        first = max(first, -(-visible_from // page_size), pages.first_sliding)
        for page in range(first, min(certain // page_size, len(pages.published))):
            entry = pages.published[page]
            # A pass of fewer layers takes nothing from the rows of the others, nor from who hits.
            if entry.sliding_page == pages.sliding[page] and len(entry.drafted) < num_layers:
                end = (page + 1) * page_size
                entry.drafted = tuple(pages.chain.token_ids[end : end + num_layers])

    def free(self, pages: SequencePages) -> None:
        """The request is gone; its published pages stay for others, idle."""
        if self._has_sliding:
            for page in range(pages.num_pages - 1, pages.first_sliding - 1, -1):
                self._release_sliding(pages, page, ends_prefix=True)
        num_published = len(pages.published)
        for page in reversed(pages.full[num_published:]):
            self._full_pool.release(page)
        for entry in reversed(pages.published):
            self._prefix.release_full(entry)
        del self._live[pages]

    def _publish(self, pages: SequencePages) -> None:
        """Publish the pages that are complete and computed."""
        published = pages.published
        while (page := len(published)) < pages.num_computed // self._page_size:
            own_sliding = pages.sliding[page] if self._has_sliding else None
            entry = self._prefix.publish(
                pages.chain,
                page,
                published[-1] if published else None,
                pages.full[page],
                own_sliding,
            )
            if entry is None:
                pages.publish_at = _NEVER
                return
            published.append(entry)
            if entry.full_page != pages.full[page] or entry.sliding_page != own_sliding:
                pages.full[page] = entry.full_page
                if entry.sliding_page is not None and not self._has_drafts:
                    pages.sliding[page] = entry.sliding_page
                pages.num_sent = min(pages.num_sent, page)
        pages.publish_at = (len(published) + 1) * self._page_size

    def _slide(self, pages: SequencePages) -> None:
        """Give back the sliding pages that no later query sees."""
        window = self.layout.window
        assert window is not None
        first_visible = max(0, pages.num_computed - window + 1) // self._page_size
        # The next turn of a conversation starts near the end of this prompt; one page is spared
        # for the tokens that a template may change there.
        prompt_end = pages.chain.num_prompt_tokens // self._page_size
        prompt_tail = (prompt_end - 1) - num_pages_for(window - 1, self._page_size)
        for page in range(pages.first_sliding, first_visible):
            self._release_sliding(pages, page, ends_prefix=prompt_tail <= page < prompt_end)
            pages.sliding[page] = NO_PAGE
        pages.first_sliding = first_visible
        pages.slide_at = self._next_slide(pages)

    def _next_slide(self, pages: SequencePages) -> int:
        assert self.layout.window is not None
        return (pages.first_sliding + 1) * self._page_size + self.layout.window - 1

    def _release_sliding(self, pages: SequencePages, page: int, *, ends_prefix: bool) -> None:
        entry = pages.published[page] if page < len(pages.published) else None
        if entry is not None and entry.sliding_page == pages.sliding[page]:
            self._prefix.release_sliding(entry, ends_prefix=ends_prefix)
        else:
            self._sliding_pool.release(pages.sliding[page])

    def full_usage(self) -> GroupUsage:
        return _usage(self._full_pool, self._prefix.num_idle_full)

    def sliding_usage(self) -> GroupUsage:
        return _usage(self._sliding_pool, self._prefix.num_idle_sliding)

    def check(self) -> None:
        """Recount every reference from the tables; assert all that must hold. Slow: for tests."""
        full: Counter[int] = Counter()
        sliding: Counter[int] = Counter()
        for entry in self._prefix.entries():
            full[entry.full_page] += 1
            if entry.sliding_page is not None:
                sliding[entry.sliding_page] += 1
        assert len(full) == len(self._prefix.entries())
        for pages in self._live:
            num_published = len(pages.published)
            assert len(pages.full) == (pages.num_pages if self._has_full else 0)
            assert len(pages.sliding) == (pages.num_pages if self._has_sliding else 0)
            assert pages.num_sent <= pages.num_pages
            assert pages.full[:num_published] == [entry.full_page for entry in pages.published]
            for page in range(pages.first_sliding, num_published if self._has_sliding else 0):
                is_shared = pages.sliding[page] == pages.published[page].sliding_page
                assert is_shared or self._has_drafts
            assert pages.drafted_from <= pages.drafted_to <= pages.num_computed
            assert all(full[page] == 0 for page in pages.full[num_published:])
            first_private = max(pages.first_sliding, num_published)
            assert all(sliding[page] == 0 for page in pages.sliding[first_private:])
            full.update(pages.full)
            sliding.update(pages.sliding[pages.first_sliding :])
        self._full_pool.check(full)
        self._sliding_pool.check(sliding)
        self._prefix.check()


def _usage(pool: PagePool, num_idle: int) -> GroupUsage:
    live = pool.num_pages - pool.num_free - num_idle
    return GroupUsage(live=live, idle=num_idle, free=pool.num_free, total=pool.num_pages)
