"""`SamplingParams`: how the tokens of one request are chosen, and when it ends."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from mimo_engine.errors import RequestError

__all__ = ["MAX_LOGPROBS", "MAX_N", "MAX_TOP_K", "GrammarSpec", "SamplingParams", "ThinkingSpec"]

MAX_LOGPROBS = 20
MAX_N = 128
MAX_TOP_K = 2**31 - 1
"""Captured steps hold it in 32 bits."""
MAX_LOGIT_BIAS_ENTRIES = 1024
MAX_STOPS = 64
MAX_STOP_LEN = 1024

_HALF_PAIR = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class GrammarSpec:
    """What the answer (all that is not thinking) must match, from its first token to its last."""

    kind: Literal["json_schema", "regex", "lark", "tools"]
    text: str
    """The schema as JSON, the regular expression, or the grammar in llguidance's Lark: anybody's,
    or one that tool_grammar made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingSpec:
    """The prompt leaves it to the model to think first (protocol.md 3.1 and 6.2).

    Thinking begins with a first token `start_id`; any other first token is already the answer.
    """

    start_id: int
    """<think>."""
    end_id: int
    """</think>: the token after it is the first of the answer."""
    budget: int | None = None
    """After so many tokens of thinking, start_id included, only end_id may follow."""
    banned_ids: tuple[int, ...] = ()
    """Never inside thinking; strict thinking bans tool calls and the ends of a turn."""
    is_open: bool = False
    """The prompt has <think> already, so that thinking begins with any first token."""
    call_id: int | None = None
    """<tool_call>, where a call may come inside thinking: it ends it as end_id does, so that no
    budget closes what is no thought any more in the middle of a call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingParams:
    """Field names and meanings are those of vLLM and the OpenAI API. Out of bounds: RequestError.

    The order of operations on a row of logits: dead vocabulary rows masked, grammar and thinking
    mask, logit_bias, min_tokens (stop ids masked), penalties, temperature, min_p, top_k, top_p,
    draw.
    """

    temperature: float = 1.0
    """0 (or below 1e-6) is greedy."""
    top_p: float = 1.0
    top_k: int = -1
    """-1 or 0: off."""
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    """Over prompt and output tokens; presence and frequency are over output tokens alone."""
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    """Same seed, prompt and parameters: same draws, whatever else is in the batch."""
    stop: tuple[str, ...] = ()
    include_stop_str_in_output: bool = False
    stop_token_ids: tuple[int, ...] = ()
    max_tokens: int | None = 16
    """None: as many as the context holds."""
    min_tokens: int = 0
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None
    """Log-probabilities of each sampled token and of this many most likely ones, from the model's
    own distribution (before bias, penalties and temperature)."""
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    grammar: GrammarSpec | None = None
    """None: free text."""
    thinking: ThinkingSpec | None = None
    """None: the answer begins at the first token (the prompt closed thinking, or has none)."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < 1e-6

    @property
    def has_penalty(self) -> bool:
        """Whether what came before a token changes its logit."""
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    @property
    def is_plain(self) -> bool:
        """Whether a token depends on nothing but its row of logits, temperature, top_k, top_p,
        min_p and a random number, and is all that is asked for."""
        return not (
            self.has_penalty
            or self.logit_bias
            or self.min_tokens
            or self.grammar
            or self.thinking
            or self.logprobs is not None
            or self.prompt_logprobs is not None
        )

    def __post_init__(self) -> None:
        for name in ("stop", "stop_token_ids"):
            value = getattr(self, name)
            if isinstance(value, str):
                object.__setattr__(self, name, (value,))
            elif not isinstance(value, tuple):
                object.__setattr__(self, name, tuple(value))
        self._check_ranges()
        self._check_collections()

    def _check_ranges(self) -> None:
        _bounded("temperature", self.temperature, 0.0, 1000.0)
        _bounded("top_p", self.top_p, 0.0, 1.0, open_low=True)
        _bounded("min_p", self.min_p, 0.0, 1.0)
        # A smaller one would push a logit out of float32's range.
        _bounded("repetition_penalty", self.repetition_penalty, 0.01, 2.0)
        _bounded("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _bounded("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        _bounded("n", self.n, 1, MAX_N)
        if not -1 <= self.top_k <= MAX_TOP_K:
            raise RequestError(
                f"top_k must be -1 (off) or 0 to {MAX_TOP_K}, not {self.top_k}", param="top_k"
            )
        if self.max_tokens is not None and self.max_tokens < 1:
            raise RequestError(
                f"max_tokens must be at least 1, not {self.max_tokens}", param="max_tokens"
            )
        if self.min_tokens < 0 or self.min_tokens > (self.max_tokens or self.min_tokens):
            raise RequestError(
                f"min_tokens must lie between 0 and max_tokens, not {self.min_tokens}",
                param="min_tokens",
            )
        if self.seed is not None and not -(2**63) <= self.seed < 2**64:
            raise RequestError("seed must fit 64 bits", param="seed")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if value is not None:
                _bounded(name, value, 0, MAX_LOGPROBS)

    def _check_collections(self) -> None:
        if len(self.logit_bias) > MAX_LOGIT_BIAS_ENTRIES:
            raise RequestError(
                f"logit_bias has {len(self.logit_bias)} entries; at most "
                f"{MAX_LOGIT_BIAS_ENTRIES} are taken",
                param="logit_bias",
            )
        for token_id, bias in self.logit_bias.items():
            if token_id < 0:
                raise RequestError(f"logit_bias has the id {token_id}", param="logit_bias")
            _bounded("logit_bias", bias, -100.0, 100.0)
        if len(self.stop) + len(self.stop_token_ids) > MAX_STOPS:
            raise RequestError(f"at most {MAX_STOPS} stops are taken", param="stop")
        if any(
            not isinstance(text, str) or not 0 < len(text) <= MAX_STOP_LEN for text in self.stop
        ):
            raise RequestError(
                f"stop strings must be strings of 1 to {MAX_STOP_LEN} characters", param="stop"
            )
        if any(map(_HALF_PAIR.search, self.stop)):
            raise RequestError("a stop string holds half of a surrogate pair", param="stop")


def _bounded(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    inside = (low < value if open_low else low <= value) and value <= high
    if not math.isfinite(value) or not inside:
        bracket = "(" if open_low else "["
        raise RequestError(f"{name} must be in {bracket}{low}, {high}], not {value}", param=name)
