"""Requests of the API: names, types and bounds, and what they mean to the engine.

What must hold: no field is ignored in silence. A field that this server does not know, or knows and
does not serve, is an error that names it, unless it changes no output (`IGNORED`) or carries the
value that means "off".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, FailFast, Field, model_validator

from mimo_engine.config.generation import SamplingDefaults
from mimo_engine.config.sampling import (
    MAX_LOGIT_BIAS_ENTRIES,
    MAX_LOGPROBS,
    MAX_N,
    MAX_STOPS,
    MAX_TOP_K,
    GrammarSpec,
    SamplingParams,
)
from mimo_engine.errors import RequestError
from mimo_engine.server.body_limits import MAX_JSON_VALUES
from mimo_engine.server.formats import FORMAT_FIELDS, answer_format

__all__ = [
    "CompletionRequest",
    "DetokenizeRequest",
    "RequestModel",
    "SamplingRequest",
    "SharedFields",
    "Strict",
    "check_sizes",
]

IGNORED = frozenset(
    {
        "metadata",
        "prediction",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields of OpenAI's API that concern its accounts and its speed, not what is generated."""

MAX_CHOICES = 1024
"""Answers that one request may ask for: prompts times n, or times best_of."""

MAX_ENTRIES = {
    "logit_bias": MAX_LOGIT_BIAS_ENTRIES,
    "prompt": MAX_JSON_VALUES,
    "stop": MAX_STOPS,
    "stop_sequences": MAX_STOPS,
    "stop_token_ids": MAX_STOPS,
    "tokens": MAX_JSON_VALUES,
    "tools": 1024,
}
MAX_OTHER_ENTRIES = 16_384
"""Of fields of these names and of all others, such as messages. Looked at before the entries are:
a list of bad ones would give an error for each."""

MAX_TOOLS_CHARS = 2**20
"""Of all tools as JSON, about: more than a context holds."""

SUCCESSORS = {
    "functions": "tools",
    "function_call": "tool_choice",
    "guided_json": "response_format",
    "guided_regex": "regex",
    "guided_grammar": "ebnf",
    "guided_choice": "structured_outputs.choice",
}
"""Fields of completions and chat that have been replaced, and by what."""


class RequestModel(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    """Known fields without an implementation here, and the values that ask for nothing."""
    successors: ClassVar[Mapping[str, str]] = SUCCESSORS
    """Fields of other servers or times, and what takes their place here."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_what_is_not_served(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        for name, value in data.items():
            if name in cls.model_fields or name in IGNORED:
                continue
            if name in cls.successors and value is not None:
                raise RequestError(f"use {cls.successors[name]} in place of {name}", param=name)
            if name not in cls.not_served and name not in cls.successors:
                raise RequestError(f"unknown field {name!r}: remove it", param=name)
            if value is not None and value not in cls.not_served[name]:
                raise RequestError(f"{name} is not supported yet: remove it", param=name)
        check_sizes(data)
        return data


def check_sizes(data: Mapping[str, Any]) -> None:
    """RequestError: a field of a request has too many entries."""
    for name, value in data.items():
        most = MAX_ENTRIES.get(name, MAX_OTHER_ENTRIES)
        if isinstance(value, list | dict) and len(value) > most:
            raise RequestError(
                f"{name} has {len(value)} entries; at most {most} are taken", param=name
            )
    tools = data.get("tools")
    if isinstance(tools, list) and len(str(tools)) > MAX_TOOLS_CHARS:
        raise RequestError(
            f"tools have more than {MAX_TOOLS_CHARS} characters together: send fewer of them, or "
            "shorter schemas",
            param="tools",
        )


class Strict(BaseModel):
    """A part of a request. Nothing is converted, and nothing unknown is taken."""

    model_config = ConfigDict(strict=True, extra="forbid")


class StreamOptions(RequestModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool | None = None
    """Either way there is none: it hides lengths from who watches encrypted traffic."""

    @model_validator(mode="after")
    def _check(self) -> StreamOptions:
        if self.continuous_usage_stats and not self.include_usage:
            raise RequestError(
                "continuous_usage_stats needs include_usage: true", param="stream_options"
            )
        return self


class SharedFields(RequestModel):
    """What has the same name in all of OpenAI's APIs. None: as if the field were not there."""

    model: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(default=None, le=MAX_TOP_K)
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    regex: str | None = None
    ebnf: str | None = None
    stream: bool | None = None


class SamplingRequest(SharedFields):
    """What completions and chat have in common."""

    max_tokens: int | None = None
    n: int | None = None
    response_format: dict[str, Any] | None = None
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _check_stream_options(self) -> SamplingRequest:
        if self.stream_options is not None and not self.stream:
            raise RequestError(
                "stream_options needs stream: true; remove it", param="stream_options"
            )
        return self

    @property
    def include_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def usage_in_every_chunk(self) -> bool:
        return self.stream_options is not None and self.stream_options.continuous_usage_stats

    def format(self) -> tuple[str, GrammarSpec] | None:
        """The field that asks for a form of the answer, and its grammar (formats.py)."""
        return answer_format({name: getattr(self, name) for name in FORMAT_FIELDS})

    def _sampling_params(self, defaults: SamplingDefaults, **own: Any) -> SamplingParams:
        """`own`: the fields that the endpoint computes. RequestError: out of bounds."""
        passed = (
            *asdict(defaults),
            "presence_penalty",
            "frequency_penalty",
            "n",
            "seed",
            "stop_token_ids",
            "min_tokens",
            "ignore_eos",
            "skip_special_tokens",
            "include_stop_str_in_output",
        )
        given = {name: getattr(self, name) for name in passed}
        given = {name: value for name, value in given.items() if value is not None}
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        return SamplingParams(
            **(asdict(defaults) | given), stop=stop, logit_bias=self._biases(), **own
        )

    def _biases(self) -> dict[int, float]:
        for key in self.logit_bias or {}:
            if not key.isascii() or not key.isdecimal() or len(key) > 9:
                raise RequestError(
                    f"logit_bias has the key {key!r}: keys are token ids", param="logit_bias"
                )
        return {int(key): bias for key, bias in (self.logit_bias or {}).items()}


class CompletionRequest(SamplingRequest):
    """POST /v1/completions."""

    not_served: ClassVar[Mapping[str, tuple[Any, ...]]] = {
        "length_penalty": (1,),
        "spaces_between_special_tokens": (True,),
        "use_beam_search": (False,),
    }

    prompt: str | list[Any]
    suffix: str | None = None
    add_special_tokens: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MAX_N)
    return_token_ids: bool | None = None
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)
    prompt_logprobs: int | None = Field(default=None, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _check(self) -> CompletionRequest:
        if self.num_candidates < (self.n or 1):
            raise RequestError("best_of must be at least n", param="best_of")
        if self.is_ranked and self.stream:
            raise RequestError(
                "best_of above n is not available in a stream: which answers are best is known "
                "when all have ended",
                param="best_of",
            )
        if self.suffix and self.echo:
            raise RequestError("suffix and echo exclude each other", param="suffix")
        if self.prompt_logprobs is not None and self.stream:
            raise RequestError(
                "prompt_logprobs is not available in a stream", param="prompt_logprobs"
            )
        return self

    @property
    def num_candidates(self) -> int:
        """Answers generated for a prompt, of which n are given."""
        return self.best_of or self.n or 1

    @property
    def is_ranked(self) -> bool:
        """Whether the best of the candidates are chosen."""
        return self.num_candidates > (self.n or 1)

    def prompts(self) -> list[str | list[int]]:
        """The prompts, each a text or token ids. RequestError: neither, or too many."""
        prompts = self._prompts()
        num_choices = len(prompts) * self.num_candidates
        if num_choices > MAX_CHOICES:
            raise RequestError(
                f"the request asks for {num_choices} answers (prompts times n or best_of); at "
                f"most {MAX_CHOICES} are given: send it in parts",
                param="prompt",
            )
        return prompts

    def _prompts(self) -> list[str | list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and all(isinstance(item, str) for item in self.prompt):
            return list(self.prompt)
        if _is_token_ids(self.prompt):
            return [self.prompt]
        if self.prompt and all(_is_token_ids(item) for item in self.prompt):
            return list(self.prompt)
        raise RequestError(
            "prompt must be a string, a list of strings, a list of token ids, or a list of such "
            "lists, and not empty",
            param="prompt",
        )

    @property
    def scores_prompt_only(self) -> bool:
        """echo with max_tokens 0: the prompt's log-probabilities and no answer."""
        return bool(self.echo) and self.max_tokens == 0

    def sampling_params(self) -> SamplingParams:
        """The checkpoint's recommendations are for chat; raw completions use the API's."""
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        wanted = [self.prompt_logprobs, self.logprobs if self.echo else None]
        params = self._sampling_params(
            SamplingDefaults(),
            max_tokens=1 if self.scores_prompt_only else max_tokens,
            logprobs=(self.logprobs or 0) if self.is_ranked else self.logprobs,
            prompt_logprobs=max((one for one in wanted if one is not None), default=None),
        )
        return replace(params, n=self.num_candidates)


def _is_token_ids(value: Any) -> bool:
    # bool is a kind of int.
    return isinstance(value, list) and bool(value) and all(type(item) is int for item in value)


class DetokenizeRequest(RequestModel):
    """POST /detokenize."""

    model: str | None = None
    tokens: Annotated[list[int], FailFast()]
    skip_special_tokens: bool = True
