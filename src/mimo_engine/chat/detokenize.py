"""Ids to text while they arrive, and the end of the text at a stop string.

Text that was handed out is never taken back. So two things are held: the bytes of a character that
is not whole yet, and the longest end of the text that may still grow into a stop string. Each
character costs a constant amount of work for each stop string, whatever came before it.

Of several stop strings the one that is complete first wins, and of those complete at the same
character the longest: this is known when the character arrives, so that the result does not depend
on how the stream was cut, and no token is generated to wait for a longer one.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.messages import TokenLogprobs, TokenOutput

__all__ = ["Detokenizer", "OutputText", "TextDelta"]


@dataclass(frozen=True, slots=True)
class TextDelta:
    """What one push added."""

    text: str
    stopped: str | None = None
    """The stop string that ended the text."""
    num_tokens: int = 0
    """Tokens taken: all that were pushed, or up to the one that completed the stop string."""


class Detokenizer:
    """Text of one output. The deltas together are `tokenizer.decode(ids)`, cut at the stop.

    `include_stop` keeps the stop string in the text. A stop string that is complete before the
    output has `min_tokens` tokens does not count.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop_strings: Sequence[str] = (),
        *,
        include_stop: bool = False,
        skip_special_tokens: bool = True,
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._stops = [_StopMatcher(stop) for stop in stop_strings]
        self._include_stop = include_stop
        self._skip_special_tokens = skip_special_tokens
        self._min_tokens = min_tokens
        self._num_tokens = 0
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self._ended = False

    def push(self, token_ids: Iterable[int]) -> TextDelta:
        """Take new tokens, in order; those after a stop are not taken."""
        assert not self._ended, "tokens after the end of the text"
        pieces: list[str] = []
        num_tokens = 0
        for token_id in token_ids:
            num_tokens += 1
            self._num_tokens += 1
            if self._skip_special_tokens and self._tokenizer.is_skipped(token_id):
                continue
            text, stopped = self._scan(self._utf8.decode(self._tokenizer.token_bytes(token_id)))
            pieces.append(text)
            if stopped is not None:
                self._ended = True
                return TextDelta("".join(pieces), stopped, num_tokens)
        return TextDelta("".join(pieces), None, num_tokens)

    def finish(self) -> TextDelta:
        """No more tokens come: hand out what is held. Bytes of half a character are U+FFFD."""
        if self._ended:
            return TextDelta("")
        self._ended = True
        text, stopped = self._scan(self._utf8.decode(b"", final=True))
        if stopped is None:
            text, self._held = text + self._held, ""
        return TextDelta(text, stopped)

    def _scan(self, new: str) -> tuple[str, str | None]:
        """Text that may be handed out after `new` arrived, and the stop string if one is whole."""
        text = self._held + new
        for end, character in enumerate(new, start=len(self._held) + 1):
            complete = [stop.text for stop in self._stops if stop.feed(character)]
            if complete and self._num_tokens >= self._min_tokens:
                stopped = max(complete, key=len)
                self._held = ""
                return text[: end if self._include_stop else end - len(stopped)], stopped
        num_held = max((stop.num_matched for stop in self._stops), default=0)
        cut = len(text) - num_held
        self._held = text[cut:]
        return text[:cut], None


class _StopMatcher:
    """How much of a stop string the text ends with (Knuth, Morris and Pratt 1977)."""

    def __init__(self, text: str) -> None:
        assert text
        self.text = text
        self.num_matched = 0
        """Length of the longest proper prefix of `text` that the stream ends with."""
        self._shorter = [0]
        """Entry i: length of the longest proper prefix of text[: i + 1] that is also its suffix.
        Grows with what was matched: each of many outputs has its own, and most match little."""

    def feed(self, character: str) -> bool:
        """True when `character` completes the stop string."""
        matched = self.num_matched
        while matched and self.text[matched] != character:
            matched = self._shorter[matched - 1]
        matched += self.text[matched] == character
        if matched > len(self._shorter):
            self._extend()
        complete = matched == len(self.text)
        self.num_matched = self._shorter[-1] if complete else matched
        return complete

    def _extend(self) -> None:
        character, length = self.text[len(self._shorter)], self._shorter[-1]
        while length and self.text[length] != character:
            length = self._shorter[length - 1]
        self._shorter.append(length + (self.text[length] == character))


class OutputText:
    """One output of a request while it grows: ids, text, log-probabilities, and why it ended."""

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        self._detokenizer = Detokenizer(
            tokenizer,
            params.stop,
            include_stop=params.include_stop_str_in_output,
            skip_special_tokens=params.skip_special_tokens,
            min_tokens=params.min_tokens,
        )
        self._include_stop = params.include_stop_str_in_output
        self._pieces: list[str] = []
        self.token_ids: list[int] = []
        """All tokens that count as output, a final stop token included."""
        self.logprobs: list[TokenLogprobs] | None = None if params.logprobs is None else []
        self.prompt_logprobs: list[TokenLogprobs | None] | None = None
        self.num_cached_tokens = 0
        self.finish_reason: str | None = None
        """None while it runs; then stop, length, abort, error, or what its reader ended it with."""
        self.stop_reason: str | int | None = None
        """The stop string, or the id of the stop token, that ended it."""
        self.error: str | None = None

    @property
    def text(self) -> str:
        return "".join(self._pieces)

    def add(self, output: TokenOutput) -> str:
        """Take what one step made; returns the new text.

        When this ends at a stop string (finish_reason is set, output.finish_reason is not), the
        engine still runs the request: the caller aborts it and drops what comes after. The text
        of a stop token is left out, as that of a stop string is.
        """
        assert self.finish_reason is None, "output after the end"
        spelled = output.token_ids
        if output.stop_token_id is not None and not self._include_stop:
            spelled = spelled[:-1]
        delta = self._detokenizer.push(spelled)
        pieces = [delta.text]
        stopped, num_tokens = delta.stopped, delta.num_tokens
        if stopped is None:
            num_tokens = len(output.token_ids)
            if output.finish_reason is not None:
                rest = self._detokenizer.finish()
                pieces.append(rest.text)
                stopped = rest.stopped
        self._record(output, num_tokens, stopped)
        text = "".join(pieces)
        self._pieces.append(text)
        return text

    def _record(self, output: TokenOutput, num_tokens: int, stopped: str | None) -> None:
        self.token_ids += output.token_ids[:num_tokens]
        if self.logprobs is not None:
            self.logprobs += (output.logprobs or [])[:num_tokens]
        if output.prompt_logprobs is not None:
            self.prompt_logprobs = output.prompt_logprobs
        self.num_cached_tokens = max(self.num_cached_tokens, output.num_cached_tokens)
        self.error = output.error
        if stopped is not None:
            self.finish_reason, self.stop_reason = "stop", stopped
        else:
            self.finish_reason, self.stop_reason = output.finish_reason, output.stop_token_id
