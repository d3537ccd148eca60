"""Prompts to engine requests, and the engine's tokens to text: what both endpoints share.

One HTTP request may ask for several choices (prompts times n); each is a request of its own to the
engine, and all of them come back through one stream. What must hold: whatever ends the HTTP
request ends its engine requests.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from uuid import uuid4

import msgspec
from msgspec import UNSET

from mimo_engine.chat.detokenize import OutputText
from mimo_engine.chat.loop_guard import Loop, LoopGuard
from mimo_engine.chat.template import ChatTemplate
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.generation import SamplingDefaults
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.config.server import ServerConfig
from mimo_engine.engine.client import AsyncEngineClient
from mimo_engine.errors import ContextLengthError, MimoError, RequestError
from mimo_engine.messages import MediaItem, NewRequest, TokenLogprobs, TokenOutput
from mimo_engine.multimodal.processor import MediaProcessor
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.server.errors import CodedError
from mimo_engine.server.grammars import GrammarCheck
from mimo_engine.server.metrics import Metrics
from mimo_engine.server.objects import CompletionTokensDetails, PromptTokensDetails, Usage
from mimo_engine.server.request_log import log_generation

__all__ = ["LOOPED", "Generation", "ServerContext", "Update", "check_num_tokens"]

MAX_PROMPT_TOKENS = 8_000_000
"""Of one request, each prompt counted for every answer."""
MAX_PROMPT_LOGPROBS = 2_000_000
"""Of one request: they come from the engine in one message, which is read on the event loop. A
prompt of 262,144 tokens has room for the five likeliest at each, OpenAI's limit, and its own."""

LOOPED = "repetition_truncation"
"""The finish reason of an output that the loop guard ended; the name is that of Xiaomi's API."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerContext:
    """What every route of one app is given."""

    client: AsyncEngineClient
    tokenizer: Tokenizer
    template: ChatTemplate | None
    """None: a base model, which has no chat."""
    config: ServerConfig
    model_name: str
    defaults: SamplingDefaults
    """Of chat requests."""
    media: MediaProcessor
    check_grammar: GrammarCheck
    metrics: Metrics
    created: int
    """Unix time, s: when this server came to be."""

    def check_model(self, name: str | None) -> None:
        """CodedError, a 404, unless `name` is the served model or absent."""
        if name is not None and name != self.model_name:
            raise CodedError(
                f"The model `{name}` does not exist; this server has `{self.model_name}`.",
                param="model",
                status=404,
                code="model_not_found",
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Update:
    """What one engine output added to one choice."""

    index: int
    is_first: bool
    pieces: list[str]
    """The text, in as many parts as came with one token each."""
    token_ids: list[int]
    logprobs: list[TokenLogprobs]

    @property
    def text(self) -> str:
        return "".join(self.pieces)


class _Choice:
    """One engine request and what came of it."""

    def __init__(
        self, request: NewRequest, tokenizer: Tokenizer, loop_guard: LoopGuard | None
    ) -> None:
        self.request = request
        self.output = OutputText(tokenizer, request.params)
        self.loop_guard = loop_guard
        """None: loops are nobody's concern, or this output's has been found."""
        self.num_counted = 0
        """Output tokens that /metrics has."""
        self.first_token_at: float | None = None


class Generation:
    """The choices of one HTTP request: choice i answers prompt i // n.

    Of a seeded request with n > 1, answer k of a prompt has the seed `seed` + k.
    """

    def __init__(
        self,
        context: ServerContext,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        media: Sequence[MediaItem] = (),
        features: Sequence[SharedArrays] = (),
        scores_prompt_only: bool = False,
    ) -> None:
        """`media` and their `features` are the one prompt's, where there is one."""
        for prompt in prompts:
            _check_prompt(context, prompt, params)
        check_num_tokens(sum(map(len, prompts)) * params.n, params.prompt_logprobs)
        self._context = context
        self._n = params.n
        self._features = features
        self._scores_prompt_only = scores_prompt_only
        """The engine makes at least one token; here it is dropped."""
        self._started_at = time.monotonic()
        stem = uuid4().hex
        self._choices = {
            f"{stem}-{i}": _Choice(
                NewRequest(
                    request_id=f"{stem}-{i}",
                    prompt_token_ids=list(prompts[i // params.n]),
                    params=_single(params, i % params.n),
                    media=list(media),
                ),
                context.tokenizer,
                None if context.config.guards.loop_guard == "off" else LoopGuard(),
            )
            for i in range(len(prompts) * params.n)
        }
        self._index = {request_id: i for i, request_id in enumerate(self._choices)}
        self.outputs = [choice.output for choice in self._choices.values()]
        """By index; complete when `updates` has ended."""
        self.prompts = [choice.request.prompt_token_ids for choice in self._choices.values()]
        """By index."""

    async def updates(self) -> AsyncGenerator[Update]:
        """Run all choices. Closing the generator aborts those that have not ended."""
        requests = [choice.request for choice in self._choices.values()]
        unfinished = "abort"
        try:
            # Handed over for good: this process keeps no features while the engine works.
            features, self._features = self._features, ()
            with self._context.client.submit(requests, features) as stream:
                del features
                self._context.metrics.prompt_tokens.inc(sum(self._prompt_lengths()))
                async for output in stream:
                    update = self._take(output)
                    has_ended = self._has_ended(update.index)
                    if has_ended and output.finish_reason is None:
                        stream.abort(output.request_id)
                    yield update
                    if self._has_ended(update.index) and not has_ended:
                        stream.abort(output.request_id)
        except MimoError:
            unfinished = "error"
            raise
        finally:
            for choice in self._choices.values():
                self._record_end(choice, choice.output.finish_reason or unfinished)

    def end(self, index: int, *, num_dropped: int) -> None:
        """For the reader of an update: its choice has said enough, before so many of its tokens."""
        output = self.outputs[index]
        num_tokens = len(output.token_ids) - num_dropped
        del output.token_ids[num_tokens:]
        if output.logprobs is not None:
            del output.logprobs[num_tokens:]
        output.finish_reason, output.stop_reason = "stop", None

    def usage(
        self, reasoning_tokens: int | None = None, media_tokens: Mapping[str, int] | None = None
    ) -> Usage:
        """A prompt counts once, however many answers it gets. media_tokens: of the prompt, by
        their names in `PromptTokensDetails`."""
        prompt_tokens = sum(self._prompt_lengths())
        completion_tokens = sum(len(output.token_ids) for output in self.outputs)
        cached_tokens = sum(output.num_cached_tokens for output in self.outputs[:: self._n])
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens, **(media_tokens or {})),
            reasoning_tokens=UNSET if reasoning_tokens is None else reasoning_tokens,
            completion_tokens_details=CompletionTokensDetails(reasoning_tokens)
            if reasoning_tokens
            else UNSET,
        )

    def _has_ended(self, index: int) -> bool:
        return self.outputs[index].finish_reason is not None

    def _prompt_lengths(self) -> list[int]:
        return [len(prompt) for prompt in self.prompts[:: self._n]]

    def _take(self, output: TokenOutput) -> Update:
        choice = self._choices[output.request_id]
        is_first = choice.first_token_at is None
        if self._scores_prompt_only:
            output = msgspec.structs.replace(
                output, token_ids=[], logprobs=[], finish_reason="length", stop_token_id=None
            )
        loop = choice.loop_guard and choice.loop_guard.push(output.token_ids)
        num_tokens = len(choice.output.token_ids)
        if loop is not None and self._context.config.guards.loop_guard == "stop":
            output = _cut(output, loop.position - num_tokens)
        num_logprobs = len(choice.output.logprobs or ())
        self._count(choice)
        pieces: list[str] = []
        for one in _by_token(output):
            pieces.append(choice.output.add(one))
            if choice.output.finish_reason is not None:
                break
        if loop is not None:
            self._report(choice, loop)
        self._measure(choice)
        return Update(
            index=self._index[output.request_id],
            is_first=is_first,
            pieces=pieces,
            token_ids=choice.output.token_ids[num_tokens:],
            logprobs=(choice.output.logprobs or [])[num_logprobs:],
        )

    def _report(self, choice: _Choice, loop: Loop) -> None:
        choice.loop_guard = None
        if len(choice.output.token_ids) < loop.position:
            return  # a stop string came first
        action = self._context.config.guards.loop_guard
        logger.warning(
            "request %s repeats itself with a period of %d tokens, seen at token %d (%s)",
            choice.request.request_id,
            loop.period,
            loop.position,
            action,
        )
        self._context.metrics.loops.labels(action).inc()

    def _count(self, choice: _Choice) -> None:
        """Tokens that nobody cuts any more: the reader has seen their update."""
        num_tokens = len(choice.output.token_ids)
        self._context.metrics.output_tokens.inc(num_tokens - choice.num_counted)
        choice.num_counted = num_tokens

    def _measure(self, choice: _Choice) -> None:
        metrics, now = self._context.metrics, time.monotonic()
        if choice.first_token_at is None:
            choice.first_token_at = now
            metrics.ttft_s.observe(now - self._started_at)
        num_later = len(choice.output.token_ids) - 1
        if choice.output.finish_reason is not None and num_later > 0:
            metrics.tpot_s.observe((now - choice.first_token_at) / num_later)

    def _record_end(self, choice: _Choice, reason: str) -> None:
        self._count(choice)
        self._context.metrics.requests.labels(reason).inc()
        if self._context.config.security.log_requests:
            begin, first = self._started_at, choice.first_token_at
            log_generation(
                self._context.tokenizer,
                choice.request.prompt_token_ids,
                choice.output,
                reason=reason,
                seconds=time.monotonic() - begin,
                first_token_s=None if first is None else first - begin,
            )


def _by_token(output: TokenOutput) -> Iterator[TokenOutput]:
    """`output` as if its tokens had come one by one."""
    last = len(output.token_ids) - 1
    if last < 1:
        yield output
        return
    for i in range(last + 1):
        yield msgspec.structs.replace(
            output,
            token_ids=output.token_ids[i : i + 1],
            logprobs=output.logprobs and output.logprobs[i : i + 1],
            prompt_logprobs=None if i else output.prompt_logprobs,
            finish_reason=output.finish_reason if i == last else None,
            stop_token_id=output.stop_token_id if i == last else None,
        )


def _cut(output: TokenOutput, num_tokens: int) -> TokenOutput:
    """`output` as if its request had been ended at so many of its tokens, of which it has more or
    has not ended by itself; else as it is."""
    if num_tokens == len(output.token_ids) and output.finish_reason is not None:
        return output
    return msgspec.structs.replace(
        output,
        token_ids=output.token_ids[:num_tokens],
        logprobs=output.logprobs and output.logprobs[:num_tokens],
        finish_reason=LOOPED,
        stop_token_id=None,
    )


def check_num_tokens(num_tokens: int, prompt_logprobs: int | None = None) -> None:
    """RequestError: too many. num_tokens: of all prompts of a request, for every answer."""
    if num_tokens > MAX_PROMPT_TOKENS:
        raise RequestError(
            f"the prompts, each counted for every answer, have more than {MAX_PROMPT_TOKENS} "
            "tokens together: send them in several requests",
            param="prompt",
        )
    num_logprobs = 0 if prompt_logprobs is None else num_tokens * (prompt_logprobs + 1)
    if num_logprobs > MAX_PROMPT_LOGPROBS:
        raise RequestError(
            f"the request asks for {num_logprobs} log-probabilities of prompts; at most "
            f"{MAX_PROMPT_LOGPROBS} are given: ask for fewer a token, or in several requests",
            param="prompt_logprobs",
        )


def _single(params: SamplingParams, k: int) -> SamplingParams:
    return replace(params, n=1, seed=None if params.seed is None else params.seed + k)


def _check_prompt(context: ServerContext, prompt: Sequence[int], params: SamplingParams) -> None:
    """RequestError: what the engine cannot run, said before anything is started."""
    info = context.client.info
    if not prompt:
        raise RequestError("the prompt is empty: give at least one token", param="prompt")
    for what, ids in (
        ("prompt", prompt),
        ("logit_bias", params.logit_bias),
        ("stop_token_ids", params.stop_token_ids),
    ):
        if ids and not 0 <= min(ids) <= max(ids) < info.vocab_size:
            raise RequestError(
                f"{what} has a token id outside 0 to {info.vocab_size - 1}", param=what
            )
    num_wanted = max(params.max_tokens or 1, params.min_tokens)
    if len(prompt) + num_wanted > info.max_model_len:
        raise ContextLengthError(
            f"This model's maximum context length is {info.max_model_len} tokens. However, you "
            f"requested {len(prompt) + num_wanted} tokens ({len(prompt)} in the prompt, "
            f"{num_wanted} to be generated). Please shorten the prompt or the answer.",
            param="prompt",
        )
