"""The prefix cache: pages that outlive their request, found again by what they hold.

K and V of a page depend on its own tokens and on everything before them, so a page is known by a
chained hash: of its parent's hash, its token ids, and what else decides its content (the hash of
an image under it). A hash only finds a candidate; tokens and parent are compared as well, so a
collision can lose a hit but never corrupt one.

One entry stands for one logical page in both groups. A hit of length L needs every full page of
[0, L) and the sliding pages of the last window - 1 positions before L; nothing else is ever read.

    full page     always there; an entry without it is useless and is removed
    sliding page  may be missing: evicted apart from the entry, when the sliding group needs room

A page is *idle* when no live request holds it: it can be evicted. Full pages leave in the order
of last use, and a request lets go of its pages tail first, so a child is always evicted before
its parent: a chain loses its end, never its middle.

Idle sliding pages wait in two queues. A long prompt sends thousands of pages through the window
that hardly anyone will ask for; in one queue they would push out the few on which hits depend:
those at the end of a request or of its prompt, where the next turn starts, and those that were
hit before. The longer queue gives up its least recently used page, so neither starves the other.

Draft layers have their K and V in the sliding pages too, and row j of layer k depends on the token
1 + k after it: the last rows of a page depend on what follows the page. So an entry remembers with
which tokens they were computed, and a hit may use them when the same tokens follow.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

from mimo_engine.cache.pages import PagePool
from mimo_engine.messages import MediaItem

__all__ = ["CachedPage", "PageChain", "PrefixCache", "PrefixMatch", "media_page_keys"]

_ROOT = bytes(16)
"""The parent hash of a first page."""


def media_page_keys(media: Sequence[MediaItem], page_size: int) -> dict[int, bytes]:
    """What decides the content of a prompt's pages besides its tokens: which rows of which media
    stand where in them. By logical page; pages without media have none."""
    keys: dict[int, bytes] = {}
    for item in media:
        for span in item.spans:
            end = span.start + span.num_tokens
            for page in range(span.start // page_size, -(-end // page_size)):
                first = max(span.start, page * page_size)
                last = min(end, (page + 1) * page_size)
                place = (
                    first - page * page_size,
                    last - first,
                    span.first_row + first - span.start,
                )
                key = item.content_hash + array("q", place).tobytes()
                keys[page] = keys.get(page, b"") + key
    return keys


class PageChain:
    """The token ids of one request, and the hashes of its complete pages, each computed once.

    `token_ids` grows at its end as tokens are sampled. `extra_keys` maps a logical page to
    whatever decides its content besides the tokens.
    """

    __slots__ = ("_extra_keys", "_hashes", "num_prompt_tokens", "page_size", "token_ids")

    def __init__(
        self,
        prompt_token_ids: list[int],
        page_size: int,
        extra_keys: Mapping[int, bytes] | None = None,
    ) -> None:
        self.token_ids = list(prompt_token_ids)
        self.num_prompt_tokens = len(prompt_token_ids)
        self.page_size = page_size
        self._extra_keys = extra_keys or {}
        self._hashes: list[bytes] = []

    def page_tokens(self, page: int) -> tuple[int, ...]:
        start = page * self.page_size
        return tuple(self.token_ids[start : start + self.page_size])

    def page_extra(self, page: int) -> bytes:
        return self._extra_keys.get(page, b"")

    def page_hash(self, page: int) -> bytes:
        """The chained hash of a complete page."""
        assert (page + 1) * self.page_size <= len(self.token_ids)
        while len(self._hashes) <= page:
            parent = self._hashes[-1] if self._hashes else _ROOT
            self._hashes.append(self._hash_page(parent, len(self._hashes)))
        return self._hashes[page]

    def _hash_page(self, parent_hash: bytes, page: int) -> bytes:
        # Parent and tokens have a fixed length, so the concatenation is unambiguous.
        tokens = array("q", self.page_tokens(page)).tobytes()
        return blake2b(parent_hash + tokens + self.page_extra(page), digest_size=16).digest()


@dataclass(slots=True, eq=False)
class CachedPage:
    """One published page. Compared by identity."""

    page_hash: bytes
    parent: CachedPage | None
    token_ids: tuple[int, ...]
    extra: bytes
    full_page: int
    sliding_page: int | None
    was_hit: bool = False
    drafted: tuple[int, ...] = ()
    """The tokens after the page with which draft layers have computed its rows: n tokens, n
    layers. Goes with the sliding page."""

    def holds(self, chain: PageChain, page: int, parent: CachedPage | None) -> bool:
        """Whether this is page `page` of `chain`, the pages before it being `parent`'s."""
        return (
            self.parent is parent
            and self.token_ids == chain.page_tokens(page)
            and self.extra == chain.page_extra(page)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PrefixMatch:
    """The longest valid hit, before anything is taken."""

    entries: tuple[CachedPage, ...] = ()
    first_sliding: int = 0
    """The first logical page whose sliding page the hit needs."""
    num_idle_full: int = 0
    """Full pages of the hit that are idle: taking it makes them unavailable to others."""
    drafted_from: int = 0
    """The first page from which on all pages of the hit have the rows of `num_draft_layers`."""
    num_draft_layers: int = 0


class PrefixCache:
    """Entries by hash, and which of their pages may be evicted."""

    def __init__(
        self,
        full_pool: PagePool,
        sliding_pool: PagePool,
        *,
        page_size: int,
        window: int | None,
        has_drafts: bool,
    ) -> None:
        """has_drafts: draft layers write into sliding pages, each request into its own."""
        self._full_pool = full_pool
        self._sliding_pool = sliding_pool
        self._page_size = page_size
        self._window = window
        self._has_drafts = has_drafts
        self._by_hash: dict[bytes, CachedPage] = {}
        # Least recently used first. OrderedDict, because a plain dict pops its first item slowly.
        self._idle_full: OrderedDict[CachedPage, None] = OrderedDict()
        self._idle_passed: OrderedDict[CachedPage, None] = OrderedDict()
        self._idle_kept: OrderedDict[CachedPage, None] = OrderedDict()

    @property
    def num_idle_full(self) -> int:
        return len(self._idle_full)

    @property
    def num_idle_sliding(self) -> int:
        return len(self._idle_passed) + len(self._idle_kept)

    def find(self, chain: PageChain) -> PrefixMatch:
        """The longest hit for `chain` that leaves at least one token to compute."""
        entries: list[CachedPage] = []
        parent = None
        for page in range((len(chain.token_ids) - 1) // self._page_size):
            entry = self._by_hash.get(chain.page_hash(page))
            if entry is None or not entry.holds(chain, page, parent):
                break
            entries.append(entry)
            parent = entry
        num_pages, first_sliding = self._cut_to_sliding(entries)
        if self._has_drafts and num_pages > 1:
            num_pages, first_sliding = self._cut_to_drafted(chain, entries[:num_pages])
        hit = tuple(entries[:num_pages])
        drafted_from, num_draft_layers = _drafted_pages(chain, hit, first_sliding)
        return PrefixMatch(
            entries=hit,
            first_sliding=first_sliding,
            num_idle_full=sum(1 for entry in hit if entry in self._idle_full),
            drafted_from=drafted_from,
            num_draft_layers=num_draft_layers,
        )

    def _cut_to_drafted(self, chain: PageChain, entries: list[CachedPage]) -> tuple[int, int]:
        """As `_cut_to_sliding`, a page less where that saves what the draft layers have: nearly
        always the last page alone is followed by other tokens than it was."""
        num_pages = len(entries)
        last, before = (_num_drafted(chain, entries, num_pages - back) for back in (1, 2))
        if before > last:
            shorter = self._cut_to_sliding(entries[:-1])
            if shorter[0] == num_pages - 1:
                return shorter
        return num_pages, self._first_visible(num_pages)

    def _cut_to_sliding(self, entries: list[CachedPage]) -> tuple[int, int]:
        """(pages of the longest hit whose window is there, the first page of that window)."""
        num_pages = page = len(entries)
        if self._window is None:
            return num_pages, num_pages
        # Walk back from the end; a missing sliding page shortens the hit to end before it.
        while page > self._first_visible(num_pages):
            page -= 1
            if entries[page].sliding_page is None:
                num_pages = page
        return num_pages, self._first_visible(num_pages)

    def _first_visible(self, num_pages: int) -> int:
        assert self._window is not None
        return max(0, num_pages * self._page_size - self._window + 1) // self._page_size

    def take(self, match: PrefixMatch) -> None:
        """Give a live request a reference to every page of the hit."""
        for page, entry in enumerate(match.entries):
            self._take_full(entry)
            if page >= match.first_sliding:
                entry.was_hit = True
                self._take_sliding(entry)

    def publish(
        self,
        chain: PageChain,
        page: int,
        parent: CachedPage | None,
        full_page: int,
        sliding_page: int | None,
    ) -> CachedPage | None:
        """Make a computed page of a live request known; its references go over to the entry.

        When the content is known already, the request's own copy is released, and it holds the
        known page from now on; but for its sliding page where there are drafts, in which rows of
        its own are still to be written. None: another page has the same hash, and nothing was
        changed.
        """
        page_hash = chain.page_hash(page)
        entry = self._by_hash.get(page_hash)
        if entry is None:
            entry = CachedPage(
                page_hash=page_hash,
                parent=parent,
                token_ids=chain.page_tokens(page),
                extra=chain.page_extra(page),
                full_page=full_page,
                sliding_page=None,
            )
            self._by_hash[page_hash] = entry
            self._full_pool.share(full_page)
        elif entry.holds(chain, page, parent):
            self._take_full(entry)
            self._full_pool.release(full_page)
        else:
            return None
        if sliding_page is not None:
            if entry.sliding_page is None:
                entry.sliding_page = sliding_page
                self._sliding_pool.share(sliding_page)
            elif not self._has_drafts:
                self._take_sliding(entry)
                self._sliding_pool.release(sliding_page)
            elif not entry.drafted and self._sliding_pool.refs(entry.sliding_page) == 1:
                # Idle, and without draft rows for ever: the request's own will have them.
                self._forget_idle_sliding(entry)
                self._sliding_pool.release(entry.sliding_page)
                entry.sliding_page = sliding_page
                self._sliding_pool.share(sliding_page)
        return entry

    def release_full(self, entry: CachedPage) -> None:
        """A live request lets go of the full page. Tail first: a child before its parent."""
        if self._full_pool.release(entry.full_page) == 1:
            self._idle_full[entry] = None

    def release_sliding(self, entry: CachedPage, *, ends_prefix: bool) -> None:
        """A live request lets go of the sliding page; `ends_prefix`: hits are likely to need it."""
        assert entry.sliding_page is not None
        if self._sliding_pool.release(entry.sliding_page) == 1:
            queue = self._idle_kept if ends_prefix or entry.was_hit else self._idle_passed
            queue[entry] = None

    def evict_full(self) -> None:
        """Free the least recently used idle full page, and the sliding page of its entry."""
        entry, _ = self._idle_full.popitem(last=False)
        del self._by_hash[entry.page_hash]
        self._full_pool.release(entry.full_page)
        if entry.sliding_page is not None:
            self._forget_idle_sliding(entry)
            self._sliding_pool.release(entry.sliding_page)

    def evict_sliding(self) -> None:
        """Free the least recently used page of the longer queue of idle sliding pages."""
        passed, kept = self._idle_passed, self._idle_kept
        entry, _ = (passed if len(passed) >= len(kept) else kept).popitem(last=False)
        assert entry.sliding_page is not None
        self._sliding_pool.release(entry.sliding_page)
        entry.sliding_page = None
        entry.drafted = ()

    def _take_full(self, entry: CachedPage) -> None:
        self._full_pool.share(entry.full_page)
        self._idle_full.pop(entry, None)

    def _take_sliding(self, entry: CachedPage) -> None:
        assert entry.sliding_page is not None
        self._sliding_pool.share(entry.sliding_page)
        self._forget_idle_sliding(entry)

    def _forget_idle_sliding(self, entry: CachedPage) -> None:
        self._idle_passed.pop(entry, None)
        self._idle_kept.pop(entry, None)

    def entries(self) -> list[CachedPage]:
        return list(self._by_hash.values())

    def check(self) -> None:
        """Prove that chains are whole and that idle means: held by the cache alone."""
        idle_order = {entry: place for place, entry in enumerate(self._idle_full)}
        for page_hash, entry in self._by_hash.items():
            assert entry.page_hash == page_hash
            assert (entry in idle_order) == (self._full_pool.refs(entry.full_page) == 1)
            num_queues = (entry in self._idle_passed) + (entry in self._idle_kept)
            page = entry.sliding_page
            assert num_queues == (page is not None and self._sliding_pool.refs(page) == 1)
            parent = entry.parent
            if parent is not None:
                assert self._by_hash[parent.page_hash] is parent
                if parent in idle_order:
                    assert idle_order[entry] < idle_order[parent]
        assert all(self._by_hash[entry.page_hash] is entry for entry in self._idle_full)
        assert self.num_idle_sliding <= len(self._by_hash)


def _num_drafted(chain: PageChain, entries: Sequence[CachedPage], page: int) -> int:
    """Draft layers whose rows the page has, computed with the chain's own tokens."""
    drafted = entries[page].drafted
    end = (page + 1) * chain.page_size
    is_own = drafted == tuple(chain.token_ids[end : end + len(drafted)])
    return len(drafted) if is_own else 0


def _drafted_pages(
    chain: PageChain, entries: Sequence[CachedPage], first_sliding: int
) -> tuple[int, int]:
    """(first page of the hit's end that has draft rows, of how many layers)."""
    page = len(entries)
    num_layers = _num_drafted(chain, entries, page - 1) if entries else 0
    if num_layers:
        while page > first_sliding and _num_drafted(chain, entries, page - 1) >= num_layers:
            page -= 1
    return page, num_layers
