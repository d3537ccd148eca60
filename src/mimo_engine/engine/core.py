"""The engine: a scheduler, an executor, and the loop body that joins them.

    core.add(request) ...          from clients
    while core.has_work:
        outputs = core.step()      plan -> execute -> apply

It runs in the client's process (`LLM`) or in its own (`engine/process.py`); it owns no thread and
no socket. Its one use of a clock is to know what steps cost, from which `engine/drafts.py` decides
how many tokens are drafted.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from mimo_engine.cache.encoder import EncoderCache
from mimo_engine.cache.groups import CacheLayout, plan_cache
from mimo_engine.cache.manager import CacheManager
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import GIB, EngineConfig
from mimo_engine.config.media import served_media
from mimo_engine.config.model import ModelConfig, load_model_config
from mimo_engine.engine.drafts import DraftControl, num_draft_layers
from mimo_engine.engine.executor import Executor, Pending, build_executor
from mimo_engine.errors import ConfigError, RequestError
from mimo_engine.messages import EngineInfo, EngineStats, NewRequest, TokenOutput
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.scheduler.plan import StepPlan
from mimo_engine.scheduler.scheduler import Scheduler

__all__ = ["EngineCore", "build_engine"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Flight:
    """A step at the workers."""

    plan: StepPlan
    depth: int
    pending: Pending
    launched: float
    """Seconds of time.perf_counter."""


class EngineCore:
    """Not thread-safe: one caller adds, aborts and steps."""

    def __init__(
        self,
        executor: Executor,
        scheduler: Scheduler,
        info: EngineInfo,
        drafts: DraftControl | None = None,
    ) -> None:
        """drafts: decides how many tokens are drafted; None: none."""
        self.executor = executor
        self._scheduler = scheduler
        self._info = info
        self._drafts = drafts
        self._flights: deque[_Flight] = deque()
        self._depth: int | None = None
        """Of the step that is launched next; None: not chosen yet."""
        self._last_result = 0.0

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: NewRequest, features: Sequence[SharedArrays] = ()) -> None:
        """Queue a request; `features`: those of its media, in order, which are taken over.

        Raises QueueFullError or a RequestError; nothing else is affected.
        """
        _check_vocabulary(request, self._info.vocab_size)
        if request.media:
            if self._info.feature_dtype is None:
                raise RequestError("Model only supports text input", param="messages")
            _check_media(request, features)
        self._scheduler.add(request)
        if request.media:
            self.executor.add_media(request.media, features)

    def abort(self, request_id: str) -> bool:
        """End a request; False when it is not (or no longer) known."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[TokenOutput]:
        """Run one step, if there is anything to run, and return what it produced.

        Where the workers can, the step after it is under way when this returns: planned before this
        one's tokens were known, so that a GPU need not wait for the host.
        """
        with self._discarding():
            if not (self._flights or self._launch_next()):
                return []
            if self._flights[-1].pending.is_under_way:
                self._launch_ahead()
            return self._take_in()

    def settle(self) -> list[TokenOutput]:
        """Take in the steps that are under way, and begin none: nothing is in flight after it."""
        outputs: list[TokenOutput] = []
        with self._discarding():
            while self._flights:
                outputs += self._take_in()
        return outputs

    @contextmanager
    def _discarding(self) -> Iterator[None]:
        """Ctrl-C in a notebook, say: what was under way is lost, the engine is not."""
        try:
            yield
        except BaseException:
            self._flights.clear()
            self._depth = None
            self._scheduler.discard()
            raise

    def _take_in(self) -> list[TokenOutput]:
        """Wait for the oldest step under way."""
        flight = self._flights.popleft()
        result = flight.pending.result()
        now = time.perf_counter()
        row_ids = self._scheduler.row_ids()
        outputs = self._scheduler.apply(flight.plan, result)
        if self._drafts is not None:
            # Of steps in a row, each takes as long as it comes after the one before.
            seconds = now - max(flight.launched, self._last_result)
            num_tokens = {output.request_id: len(output.token_ids) for output in outputs}
            num_kept = [num_tokens.get(request_id, 0) for request_id in row_ids]
            self._drafts.saw(flight.plan, result, num_kept, flight.depth, seconds)
        self._last_result = now
        return outputs

    def _launch_next(self) -> bool:
        """Begin what comes next; False: there is nothing to do."""
        depth = self._choose_depth()
        plan = self._scheduler.plan(depth)
        if plan is None:
            self._depth = None
            return False
        self._launch(plan, depth)
        return True

    def _launch_ahead(self) -> None:
        """Begin the step after the one that is under way, if it can be foreseen."""
        # Before a depth is chosen: each choice is for one step, and a step that is not planned now
        # may have more requests.
        if not self._scheduler.may_foresee:
            return
        depth = self._choose_depth()
        if depth == self._flights[0].depth:
            plan = self._scheduler.plan_ahead()
            if plan is not None:
                self._launch(plan, depth)

    def _launch(self, plan: StepPlan, depth: int) -> None:
        self._depth = None
        launched = time.perf_counter()
        self._flights.append(_Flight(plan, depth, self.executor.launch(plan), launched))

    def _choose_depth(self) -> int:
        """Once a step."""
        if self._depth is None:
            num_decoding = self._scheduler.num_decoding
            self._depth = 0 if self._drafts is None else self._drafts.choose(num_decoding)
        return self._depth

    def stats(self) -> EngineStats:
        stats = self._scheduler.stats()
        if self._drafts is None:
            return stats
        return msgspec.structs.replace(stats, drafts=self._drafts.stats())

    def info(self) -> EngineInfo:
        return self._info

    def close(self) -> None:
        self.executor.close()


def build_engine(config: EngineConfig) -> EngineCore:
    """Load the checkpoint and allocate the cache; ready to step when it returns.

    Raises ConfigError and CheckpointError before any request can be taken.
    """
    model_dir = Path(config.model)
    model_config = load_model_config(
        model_dir,
        num_visible_tokens=config.settings.num_visible_tokens,
        ignore_keys=config.settings.ignore_config_key,
    )
    tokenizer = Tokenizer.from_dir(model_dir)
    if tokenizer.num_tokens > model_config.vocab_size:
        raise ConfigError(
            f"the tokenizer has {tokenizer.num_tokens} tokens but the model's vocabulary "
            f"{model_config.vocab_size}: they are not of one checkpoint"
        )
    media = served_media(config)
    is_random = config.weights != "checkpoint"
    num_drafts = num_draft_layers(
        config.speculative, model_config, None if is_random else model_dir
    )
    executor = build_executor(
        config,
        model_config,
        num_live_tokens=tokenizer.num_tokens,
        num_draft_layers=num_drafts,
        media=media,
    )
    layout, max_model_len = _plan_cache(config, model_config, executor, num_drafts)
    executor.allocate(layout, max_model_len=max_model_len)
    scheduler = Scheduler(
        config.scheduler,
        CacheManager(layout, config.cache.prefix_caching, has_drafts=num_drafts > 0),
        max_model_len=max_model_len,
        eos_token_ids=tuple(
            dict.fromkeys((*model_config.eos_token_ids, *tokenizer.stop_token_ids()))
        ),
        seed=secrets.randbits(63),
        encoder=_encoder_cache(config, model_config, executor) if media else None,
        max_encoder_tokens=config.encoder.max_encoder_tokens,
        recompute_boundary=config.speculative.recompute_boundary,
    )
    info = EngineInfo(
        max_model_len=max_model_len,
        vocab_size=tokenizer.num_tokens,
        num_full_pages=layout.num_full_pages,
        num_sliding_pages=layout.num_sliding_pages,
        page_size=layout.page_size,
        feature_dtype=str(executor.worker.dtype).removeprefix("torch.") if media else None,
    )
    drafts = None
    if num_drafts:
        drafts = DraftControl(config.speculative, num_drafts)
        drafts.calibrate(executor, layout, config.scheduler, info)
    _logger.info("engine ready: %s, KV cache %.2f GiB", info, layout.total_bytes / 2**30)
    return EngineCore(executor, scheduler, info, drafts)


def _plan_cache(
    config: EngineConfig, model_config: ModelConfig, executor: Executor, num_drafts: int
) -> tuple[CacheLayout, int]:
    """The pages, and the longest request that they hold. Raises ConfigError."""
    wanted_len = config.scheduler.context_len(model_config.max_position_embeddings)
    layout = plan_cache(
        model_config,
        executor.kv_budget_bytes(),
        page_size=config.cache.page_size,
        bytes_per_element=executor.worker.dtype.itemsize,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=config.scheduler.max_num_batched_tokens,
        max_model_len=wanted_len,
        kv_heads=executor.worker.kv_heads,
        num_draft_layers=num_drafts,
    )
    max_model_len = layout.longest_request(wanted_len)
    if config.scheduler.max_model_len is not None and max_model_len < wanted_len:
        raise ConfigError(
            f"the cache holds a request of {max_model_len} tokens, not the {wanted_len} of "
            "--max-model-len: lower it or raise --kv-cache-gib"
        )
    return layout, max_model_len


def _encoder_cache(
    config: EngineConfig, model_config: ModelConfig, executor: Executor
) -> EncoderCache:
    row_bytes = model_config.hidden_size * executor.worker.dtype.itemsize
    return EncoderCache(int(config.encoder.encoder_cache_gib * GIB) // row_bytes)


def _check_media(request: NewRequest, features: Sequence[SharedArrays]) -> None:
    """Our own processor made them, so what does not fit is a defect: found before it is read."""
    assert len(features) == len(request.media)
    for item in request.media:
        assert item.num_rows > 0
        assert item.unit_rows > 0
        for span in item.spans:
            assert 0 <= span.start <= len(request.prompt_token_ids) - span.num_tokens
            assert 0 <= span.first_row <= item.num_rows - span.num_tokens


def _check_vocabulary(request: NewRequest, vocab_size: int) -> None:
    """Refuse ids that no embedding row stands for, before they reach a worker."""
    ids = request.prompt_token_ids
    if ids and not (min(ids) >= 0 and max(ids) < vocab_size):
        raise RequestError(f"token ids must be in [0, {vocab_size})", param="prompt")
    if any(token_id >= vocab_size for token_id in request.params.logit_bias):
        raise RequestError(f"logit_bias ids must be in [0, {vocab_size})", param="logit_bias")
    thinking = request.params.thinking
    if thinking is not None:
        ids = (thinking.start_id, thinking.end_id, *thinking.banned_ids)
        if not 0 <= min(ids) <= max(ids) < vocab_size:
            raise RequestError(f"ids of thinking must be in [0, {vocab_size})", param="thinking")
