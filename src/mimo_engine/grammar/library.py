"""The adapter around llguidance: from a `GrammarSpec` to the tokens that may come next.

llguidance keeps a parser over bytes and walks the vocabulary's trie with it, so that a mask is
computed when it is needed and nothing is built for a whole grammar beforehand. It is the only
importer of that library.

What must hold, whatever text a client sends: compiling ends, in a second or two at the worst and
without the process's death, and so does every mask, but for one case (`_limits`). The first is seen
to by the limits below and by a stack that no chain of rules of MAX_GRAMMAR_BYTES can fill; the
second by the limits alone. They count work, not time, so that a grammar that passed `check` in one
process compiles in another.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, regex_to_lark

from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import RequestError

__all__ = ["JSON_OPTIONS", "MAX_GRAMMAR_BYTES", "GrammarCompiler", "Matcher", "regex_source"]

MAX_GRAMMAR_BYTES = 128 * 1024
_JSON_WHITESPACE = r"\x20|\n\x20{0,24}|\n\t{0,12}"
"""What may stand wherever JSON allows whitespace: one space, or a line's end and its indentation.
Unbounded whitespace is where a model that has lost its way would stay."""

JSON_OPTIONS: Any = {
    "item_separator": ",",
    "key_separator": ":",
    "whitespace_pattern": _JSON_WHITESPACE,
    "lenient": False,
    "coerce_one_of": False,
}
"""How llguidance reads every schema; in a grammar, as `x-guidance` at the top of the schema."""

_MAX_ERROR_CHARS = 500
_NUM_CACHED = 64
# A chain of rules or references is walked by recursion: 128 KiB of them need 32 MB.
_STACK_BYTES = 128 * 1024 * 1024
_stack_size_lock = threading.Lock()

_NAMES = {
    "json_schema": "JSON schema",
    "regex": "regular expression",
    "lark": "grammar",
    "tools": "grammar of the tools",
}

T = TypeVar("T")


class Matcher:
    """How far one output has come in its grammar. Not thread-safe."""

    def __init__(self, core: LLMatcher, end_ids: frozenset[int], end_mask: bytes) -> None:
        self._core = core
        self._end_ids = end_ids
        self._end_mask = end_mask
        self._num_ends = 0
        """End tokens taken; the library never sees them."""

    @property
    def is_accepting(self) -> bool:
        """True when what was accepted is a whole text of the grammar."""
        return self._num_ends > 0 or self._core.is_accepting()

    @property
    def is_stopped(self) -> bool:
        """True when nothing but an end token may follow."""
        return self._num_ends > 0 or self._core.is_stopped()

    def mask(self) -> bytes:
        """Bit i % 32 of little-endian word i // 32: whether token i may come next.

        After a whole text that is the end tokens too, and after its end nothing else.
        RequestError: the grammar went over its limits here, or no token can continue the text.
        """
        if self._num_ends:
            return self._end_mask
        mask = self._core.compute_bitmask()[: len(self._end_mask)]
        self._check()
        if not any(mask):
            raise RequestError("the grammar allows no token here: no text can match it")
        return mask

    def accept(self, token_id: int) -> bool:
        """Take a token; False, and nothing changes, when it may not come next.

        RequestError: the grammar went over its limits here; it will at every call from now on.
        """
        if token_id in self._end_ids:
            is_end = self.is_accepting
            self._num_ends += is_end
            return is_end
        if self._num_ends:
            return False
        is_taken = self._core.try_consume_tokens([token_id]) == 1
        self._check()
        return is_taken

    def copy(self) -> Matcher:
        """One that goes its own way from here: tens of microseconds."""
        other = Matcher(self._core.deep_copy(), self._end_ids, self._end_mask)
        other._num_ends = self._num_ends
        return other

    def _check(self) -> None:
        if self._core.is_error():
            raise RequestError(
                f"the grammar cannot be followed further ({_first_line(self._core.get_error())}); "
                "make it simpler"
            )


class GrammarCompiler:
    """Makes matchers for one vocabulary. Thread-safe; it remembers what it compiled last."""

    def __init__(self, tokenizer_json: str, *, num_tokens: int, end_ids: Sequence[int]) -> None:
        """`tokenizer_json`: the text of tokenizer.json. `num_tokens`: 1 + the highest id.

        `end_ids`: the ids by which an output ends, those of them that are tokens; at least one.
        Every added token is markup: free text in a grammar never has it, only `<name>` does.
        """
        content = json.loads(tokenizer_json)
        for token in content["added_tokens"]:
            token["special"] = True
        self.num_tokens = num_tokens
        self.end_ids = frozenset(token_id for token_id in end_ids if token_id < num_tokens)
        assert self.end_ids, "no token can end a grammar"
        self.num_mask_bytes = -(-num_tokens // 32) * 4
        self._end_mask = sum(1 << token_id for token_id in self.end_ids).to_bytes(
            self.num_mask_bytes, "little"
        )
        self._tokenizer = LLTokenizer(
            json.dumps(content), n_vocab=num_tokens, eos_token=sorted(self.end_ids)
        )
        self._cache: OrderedDict[GrammarSpec, LLMatcher | str] = OrderedDict()
        """An unused matcher, or why there is none."""
        self._lock = threading.Lock()

    def check(self, spec: GrammarSpec) -> None:
        """RequestError, with what is wrong, when outputs cannot be held to `spec`.

        Takes up to a second: not for an event loop's thread.
        """
        self.matcher(spec)

    def matcher(self, spec: GrammarSpec) -> Matcher:
        """A matcher before its first token. RequestError as `check`."""
        with self._lock:
            core = self._cache.pop(spec, None)
        if core is None:
            core = _on_deep_stack(lambda: self._compile(spec))
        with self._lock:
            self._cache[spec] = core
            while len(self._cache) > _NUM_CACHED:
                self._cache.popitem(last=False)
        if isinstance(core, str):
            raise RequestError(core)
        return Matcher(core.deep_copy(), self.end_ids, self._end_mask)

    def _compile(self, spec: GrammarSpec) -> LLMatcher | str:
        name = _NAMES[spec.kind]
        try:
            size = len(spec.text.encode("utf-8"))
        except UnicodeEncodeError:
            return f"the {name} holds half of a surrogate pair; send whole characters"
        if size > MAX_GRAMMAR_BYTES:
            return f"the {name} has {size} bytes; at most {MAX_GRAMMAR_BYTES} are taken"
        try:
            core = LLMatcher(self._tokenizer, _source(spec), log_level=0, limits=_limits(spec))
        except ValueError as error:
            return f"the {name} cannot be read: {_first_line(str(error))}"
        if not core.is_error():
            # Some limits, and grammars without any text, show only here.
            core.compute_bitmask()
        if core.is_error():
            return f"the {name} cannot be enforced: {_first_line(core.get_error())}"
        return core


def regex_source(pattern: str) -> str:
    """`pattern`, in JSON schema's dialect, as it stands between the slashes of a grammar."""
    return regex_to_lark(pattern, use_ascii="dw")


def _source(spec: GrammarSpec) -> str:
    """The library's own form of a grammar. ValueError: a schema that is not a JSON object."""
    match spec.kind:
        case "json_schema":
            # Overrides: the schema's own x-guidance must not lift a bound or drop a keyword.
            return LLMatcher.grammar_from_json_schema(spec.text, overrides=JSON_OPTIONS)
        case "regex":
            return LLMatcher.grammar_from_regex(spec.text)
        case "lark" | "tools":
            return LLMatcher.grammar_from_lark(spec.text)


def _limits(spec: GrammarSpec) -> LLParserLimits:
    """Some tens of megabytes for an output, and the times below, on one slow core.

    A mask looks at up to `step_max_items` items of the parser, a little more where the last row
    goes over. In a free grammar each of them may be found many times over, so that an ambiguous one
    costs about the square of that: of a few hundred, whose rules are many repetitions, nullable
    endings or left recursion, the worst mask took 34 ms at 5000 (140 ms at 10000, seconds at
    50000), the worst to compile two seconds. Such as are written to be parsed take 628 at most (a
    letter at a time, over 152 thousand tokens). A schema cannot be ambiguous like that, brackets
    stand around every recursion, and needs far more: 300 optional properties take 18 thousand. Its
    worst mask took 78 ms.

    Not bounded is one row that follows thousands of small ones: the library counts it when it is
    whole. Where a right recursion ends in 20 nullable ways it took half a second after 500 tokens,
    and grows with their square. Whoever waits for a mask must know when to go on (worker/masks.py).
    """
    return LLParserLimits(
        max_items_in_row=2000,
        initial_lexer_fuel=500_000,
        step_lexer_fuel=200_000,
        step_max_items=5000 if spec.kind == "lark" else 50_000,
        max_lexer_states=50_000,
        max_grammar_size=100_000,
        verbose_errors=False,
    )


def _on_deep_stack(function: Callable[[], T]) -> T:
    """Call `function` on a thread of its own, with `_STACK_BYTES` of (virtual) stack."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="grammar-compiler")
    with _stack_size_lock:
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread.start()
        finally:
            threading.stack_size(before)
    thread.join()
    return future.result()


def _first_line(message: str) -> str:
    line = message.strip().splitlines()[0] if message.strip() else "no reason given"
    return line.removesuffix(" <non-verbose/>")[:_MAX_ERROR_CHARS]
