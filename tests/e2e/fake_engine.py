"""An engine without a model, for tests of what is around it.

It answers with its prompt: token i of an answer is token (i + seed) of the prompt, modulo the
prompt's length and special tokens left out; after one pass comes the end-of-text token. So a test
knows every expected answer from the prompt alone. `num_preemptions` counts aborts that hit a live
request; the full group has one page for each live request. Answers of seeds that 3 divides are the
likeliest, then come those one above them.

A prompt may also hold a script: token ids between <|fim_prefix|> and <|fim_suffix|>. The last one
is then the answer, token for token, in steps of `seed` tokens (1 without a seed). For APIs that
have no seed top_k says the same as the seed.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

from mimo_engine.config.engine import EngineConfig, SchedulerConfig
from mimo_engine.errors import ConfigError, ContextLengthError, QueueFullError, RequestError
from mimo_engine.messages import (
    EngineInfo,
    EngineStats,
    NewRequest,
    TokenLogprobs,
    TokenOutput,
)

BUILD = "fake_engine:build_fake_engine"


def fake_config(*, scheduler=None, **options):
    """Options: eos_id, special_ids (list), vocab_size, script_marks (two ids), step_s,
    build_error, held_by (a file's path: while there is one, no engine gets built)."""
    return EngineConfig(model=json.dumps(options), scheduler=scheduler or SchedulerConfig())


def answer(prompt, *, eos_id, special_ids, seed=0, max_tokens=None, ignore_eos=False):
    """The token ids that the engine gives to a prompt."""
    text_ids = [token for token in prompt if token not in special_ids] or [0]
    period = len(text_ids)
    if max_tokens is None:
        max_tokens = period + 1
    ids = [text_ids[(i + seed) % period] for i in range(max_tokens)]
    if not ignore_eos and max_tokens > period:
        ids = [*ids[:period], eos_id]
    return ids


def seed_of(params):
    """0: none."""
    return params.seed or max(params.top_k, 0)


def script(prompt, marks):
    """The ids between the last pair of marks; None when there is none."""
    begin, end = marks
    if begin not in prompt:
        return None
    last = len(prompt) - prompt[::-1].index(begin)
    return prompt[last : prompt.index(end, last)]


@dataclass
class Live:
    request: NewRequest
    ids: list[int]
    cached: int
    step: int = 1
    sent: int = 0


@dataclass
class FakeCore:
    config: EngineConfig
    options: dict
    live: dict[str, Live] = field(default_factory=dict)
    seen: set[tuple[int, ...]] = field(default_factory=set)
    num_aborts: int = 0
    query_tokens: int = 0
    hit_tokens: int = 0

    @property
    def max_model_len(self):
        return self.config.scheduler.max_model_len or 4096

    @property
    def has_work(self):
        return bool(self.live)

    def add(self, request, features=()):
        prompt, params, limits = request.prompt_token_ids, request.params, self.config.scheduler
        if len(self.live) >= limits.max_num_seqs + limits.max_queue_len:
            raise QueueFullError("the queue is full; try again later")
        if len(prompt) >= self.max_model_len:
            raise ContextLengthError("too long", param="prompt")
        if seed_of(params) == 666:
            raise RequestError("this engine refuses the seed 666", param="seed")
        room = self.max_model_len - len(prompt)
        max_tokens = min(params.max_tokens or room, room)
        scripted = script(prompt, self.options.get("script_marks", (-1, -1)))
        if scripted is not None:
            ids = [*scripted, self.options["eos_id"]][:max_tokens]
        else:
            ids = answer(
                prompt,
                eos_id=self.options["eos_id"],
                special_ids=self.options["special_ids"],
                seed=params.seed or 0,
                max_tokens=max_tokens,
                ignore_eos=params.ignore_eos,
            )
        step = 1 if scripted is None else seed_of(params) or 1
        cached = (len(prompt) - 1) // 16 * 16 if tuple(prompt) in self.seen else 0
        self.seen.add(tuple(prompt))
        self.query_tokens += len(prompt)
        self.hit_tokens += cached
        self.live[request.request_id] = Live(request=request, ids=ids, cached=cached, step=step)

    def abort(self, request_id):
        hit = self.live.pop(request_id, None) is not None
        self.num_aborts += hit
        return hit

    def step(self):
        time.sleep(self.options.get("step_s", 0.0))
        running = list(self.live.values())[: self.config.scheduler.max_num_seqs]
        return [self._advance(one) for one in running]

    def _advance(self, one):
        params = one.request.params
        if seed_of(params) == 13:
            raise ArithmeticError("seed 13 breaks this engine")
        if seed_of(params) == 14:
            del self.live[one.request.request_id]
            return TokenOutput(
                request_id=one.request.request_id,
                token_ids=[],
                finish_reason="error",
                error="broken logits",
            )
        tokens = one.ids[one.sent : one.sent + one.step]
        first = one.sent == 0
        one.sent += len(tokens)
        finish_reason = None
        if one.sent == len(one.ids):
            stopped = tokens[-1] == self.options["eos_id"] and not params.ignore_eos
            finish_reason = "stop" if stopped else "length"
            del self.live[one.request.request_id]
        logprobs = prompt_logprobs = None
        if params.logprobs is not None:
            less = (params.seed or 0) % 3 / 10
            logprobs = [fake_logprobs(token, params.logprobs, less) for token in tokens]
        if first and params.prompt_logprobs is not None:
            ids = one.request.prompt_token_ids
            prompt_logprobs = [None, *(fake_logprobs(i, params.prompt_logprobs) for i in ids[1:])]
        return TokenOutput(
            request_id=one.request.request_id,
            token_ids=tokens,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            finish_reason=finish_reason,
            stop_token_id=tokens[-1] if finish_reason == "stop" else None,
            num_cached_tokens=one.cached,
        )

    def stats(self):
        limit = self.config.scheduler.max_num_seqs
        return EngineStats(
            num_running=min(limit, len(self.live)),
            num_waiting=max(0, len(self.live) - limit),
            num_preemptions=self.num_aborts,
            full_pages_used=len(self.live),
            full_pages_total=1000,
            sliding_pages_total=500,
            prefix_query_tokens=self.query_tokens,
            prefix_hit_tokens=self.hit_tokens,
        )

    def info(self):
        return EngineInfo(
            max_model_len=self.max_model_len,
            vocab_size=self.options["vocab_size"],
            num_full_pages=1000,
            num_sliding_pages=500,
            page_size=16,
        )

    def close(self):
        pass


def fake_logprobs(token_id, top, less=0.0):
    """The sampled token is the likeliest; the next ids follow it, half as likely each."""
    pairs = [(token_id + i, -0.5 - less - 0.7 * i) for i in range(top)]
    return TokenLogprobs(token_id=token_id, logprob=-0.5 - less, rank=1, top=tuple(pairs))


def build_fake_engine(config):
    options = json.loads(config.model)
    while "held_by" in options and Path(options["held_by"]).exists():
        time.sleep(0.01)
    if "build_error" in options:
        raise ConfigError(options["build_error"])
    return FakeCore(config=config, options=options)
