"""Which token may come next in one output: thinking, then the grammar (protocol.md 6.2).

    first token     <think>, or a first token of the answer: a model may skip thinking
    thinking        everything but banned_ids, until </think>; after `budget` tokens only </think>.
                    Where a grammar follows, no end token: the answer may not be left out. Where
                    it may be ended by a tool call, until that
    answer          what the grammar says; everything where there is none

The state is two counts and the matcher's, so that a copy, to be walked over drafts, is cheap.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

from mimo_engine.config.sampling import SamplingParams, ThinkingSpec
from mimo_engine.grammar.library import GrammarCompiler, Matcher

__all__ = ["TokenConstraint", "make_constraint"]


def make_constraint(params: SamplingParams, compiler: GrammarCompiler) -> TokenConstraint | None:
    """For an output before its first token; None when every token may always come.

    RequestError: as GrammarCompiler.check.
    """
    matcher = None if params.grammar is None else compiler.matcher(params.grammar)
    thinking = params.thinking
    if thinking is not None and thinking.budget is None and not thinking.banned_ids:
        # Without a grammar after it, such thinking is free text like any other.
        thinking = thinking if matcher is not None else None
    if thinking is None and matcher is None:
        return None
    return TokenConstraint(thinking, matcher, compiler)


class TokenConstraint:
    """One output's. Not thread-safe."""

    def __init__(
        self, thinking: ThinkingSpec | None, matcher: Matcher | None, compiler: GrammarCompiler
    ) -> None:
        self._thinking = thinking
        self._matcher = matcher
        self._num_mask_bytes = compiler.num_mask_bytes
        self._num_answer = 0
        self._num_thinking = 0
        """Tokens of thinking so far, both tags or that of a call included."""
        self._is_closed = False
        """Whether the last of them ended it."""
        self._banned: frozenset[int] = frozenset()
        self._thinking_mask: bytes | None = None
        if thinking is not None:
            ends = compiler.end_ids if matcher is not None else ()
            self._banned = frozenset((*thinking.banned_ids, *ends)) - {thinking.end_id}
            if self._banned:
                everything = (1 << compiler.num_tokens) - 1
                self._thinking_mask = self._bytes(everything & ~_bits(self._banned))

    @property
    def num_accepted(self) -> int:
        return self._num_thinking + self._num_answer

    def mask(self) -> bytes | None:
        """The tokens that may come next, in the form of `Matcher.mask`; None: all.

        RequestError: the grammar allows no token, or went over its limits.
        """
        thinking = self._thinking
        if thinking is not None and self._is_thinking:
            return self._bytes(1 << thinking.end_id) if self._is_spent else self._thinking_mask
        answer = None if self._matcher is None else self._matcher.mask()
        if thinking is None or self.num_accepted or answer is None:
            return answer
        return self._bytes(int.from_bytes(answer, "little") | 1 << thinking.start_id)

    def accept(self, token_id: int) -> bool:
        """Take a token; False, and nothing changes, when it may not come next.

        RequestError: as `Matcher.accept`.
        """
        thinking = self._thinking
        if thinking is not None and self._is_thinking:
            is_end = token_id == thinking.end_id
            if not is_end and (self._is_spent or token_id in self._banned):
                return False
            self._num_thinking += 1
            self._is_closed = is_end or token_id == thinking.call_id
            return True
        if thinking is not None and not self.num_accepted and token_id == thinking.start_id:
            self._num_thinking = 1
            return True
        if self._matcher is not None and not self._matcher.accept(token_id):
            return False
        self._num_answer += 1
        return True

    def copy(self) -> TokenConstraint:
        """One that goes its own way from here."""
        other = copy.copy(self)
        other._matcher = None if self._matcher is None else self._matcher.copy()
        return other

    @property
    def _is_thinking(self) -> bool:
        assert self._thinking is not None
        has_begun = self._num_thinking > 0 or self._thinking.is_open
        return has_begun and not self._is_closed

    @property
    def _is_spent(self) -> bool:
        assert self._thinking is not None
        budget = self._thinking.budget
        return budget is not None and self._num_thinking >= budget

    def _bytes(self, bits: int) -> bytes:
        return bits.to_bytes(self._num_mask_bytes, "little")


def _bits(token_ids: Iterable[int]) -> int:
    return sum(1 << token_id for token_id in token_ids)
