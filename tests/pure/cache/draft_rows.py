"""What draft layers leave in sliding pages, and what a pass of them sees there.

K and V of row j in draft layer k are a function of the target's hidden state at j, so of the tokens
up to j, and of the one token that the layer read: x[j + 1 + k], known or guessed. That is the tag
of a place (page, offset, layer). A pass may see a row only if its tag is what the request itself
would write there now, from the tokens that it knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

__all__ = ["DraftRows", "Pass", "Tag", "digests_of"]


def digests_of(token_ids: Sequence[int]) -> list[int]:
    """Of the tokens up to each position."""
    digests, digest = [], 0
    for token_id in token_ids:
        digest = hash((digest, token_id))
        digests.append(digest)
    return digests


@dataclass(frozen=True, slots=True)
class Tag:
    before: int | None
    """The hidden state's own: a digest of the tokens up to the row."""
    token_id: int
    is_guess: bool


@dataclass(kw_only=True, slots=True)
class Pass:
    """Rows start ... of one request, up to the last that is followed by a known token."""

    table: Mapping[int, int]
    """The request's sliding pages, as its worker knows them."""
    known: Sequence[int]
    digests: Sequence[int]
    """Of `known`."""
    hidden: Mapping[int, int | None]
    """By position: the digest whose hidden state is read there."""
    guesses: Sequence[int]
    """The tokens that are taken to follow the known ones, one a layer."""
    start: int
    visible_from: int
    num_cached: int = 0
    """Rows before this one were computed by other requests."""

    @property
    def last(self) -> int:
        return len(self.known) - 2

    def token(self, position: int) -> tuple[int, bool]:
        """(the token there, whether it is a guess)."""
        num_known = len(self.known)
        if position < num_known:
            return self.known[position], False
        return self.guesses[position - num_known], True


class DraftRows:
    """The tags of all places, and counts that show what the checks have met."""

    def __init__(self, *, page_size: int, window: int, keeps_guessed: bool = False) -> None:
        """keeps_guessed: rows whose tokens were guessed are not computed again."""
        self._page_size = page_size
        self._window = window
        self._keeps_guessed = keeps_guessed
        self._tags: dict[tuple[int, int, int], Tag] = {}
        self.num_seen = 0
        self.num_seen_of_others = 0
        self.num_hidden = 0
        """Rows of a window that a pass could not see."""

    def _place(self, one: Pass, row: int) -> tuple[int, int]:
        return one.table[row // self._page_size], row % self._page_size

    def run(self, passes: Sequence[Pass]) -> None:
        """One pass of all: every row is written before any is read."""
        written: set[tuple[int, int]] = set()
        for one in passes:
            assert 0 <= one.start <= one.last
            assert one.start >= one.num_cached, "hidden states that the request never had"
            for row in range(one.start, one.last + 1):
                place = self._place(one, row)
                assert place not in written, "two requests write to one place"
                written.add(place)
                for layer in range(len(one.guesses)):
                    token_id, is_guess = one.token(row + 1 + layer)
                    self._tags[*place, layer] = Tag(one.hidden[row], token_id, is_guess)
        for one in passes:
            self._check(one)

    def _check(self, one: Pass) -> None:
        oldest = max(0, one.last - self._window + 1)
        first = max(oldest, one.visible_from)
        self.num_hidden += first - oldest
        self.num_seen += one.last + 1 - first
        self.num_seen_of_others += max(0, min(one.num_cached, one.last + 1) - first)
        for row in range(first, one.last + 1):
            for layer in range(len(one.guesses)):
                tag = self._tags.get((*self._place(one, row), layer))
                what = f"layer {layer} at row {row} of {one.start} ... {one.last}"
                assert tag is not None, f"{what}: nothing was ever written"
                assert tag.before == one.digests[row], f"{what}: of other tokens before it"
                token_id, is_guess = one.token(row + 1 + layer)
                if self._keeps_guessed and tag.is_guess:
                    continue
                assert not is_guess or row >= one.start, f"{what}: an old guess"
                assert tag.token_id == token_id, f"{what}: made for another token behind it"
