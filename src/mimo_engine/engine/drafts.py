"""Drafts as the engine sees them: whether there are any, what they cost, and how many are worth it.

`DraftControl` is the controller of `scheduler/depth.py` with what it has to be told: every step's
time and acceptance, and before the first request what steps of each depth cost on this machine.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.cache.manager import CacheManager
from mimo_engine.checkpoint.index import open_checkpoint
from mimo_engine.checkpoint.verify import count_mtp_layers
from mimo_engine.config.engine import SchedulerConfig, SpeculativeConfig
from mimo_engine.config.model import ModelConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.engine.executor import Executor
from mimo_engine.errors import ConfigError
from mimo_engine.messages import DraftStats, EngineInfo, NewRequest
from mimo_engine.scheduler.depth import DepthController
from mimo_engine.scheduler.plan import StepPlan, StepResult
from mimo_engine.scheduler.scheduler import Scheduler

__all__ = ["DraftControl", "num_draft_layers"]

_logger = logging.getLogger(__name__)

_BATCHES = (1, 4, 16)
"""Sizes at which steps are timed at start."""
_WARM_STEPS, _TIMED_STEPS = 1, 3
_PROMPT_LEN = 8


def num_draft_layers(config: SpeculativeConfig, model: ModelConfig, model_dir: Path | None) -> int:
    """How many MTP layers of the checkpoint are used; None: there is none, and as many as are asked
    for can be made. Raises ConfigError for `mtp` with too few."""
    if config.speculative == "off":
        return 0
    if model_dir is None:
        found = config.max_draft_tokens
    else:
        found = count_mtp_layers(open_checkpoint(model_dir))
    if found and model.window is None:
        raise ConfigError(
            "draft layers share the pages of sliding layers, and this model has none: use "
            "--speculative off"
        )
    if config.speculative == "mtp" and found < config.max_draft_tokens:
        raise ConfigError(
            f"--speculative mtp: the checkpoint has {found} MTP layers, and each makes one draft: "
            f"use --speculative auto, or --max-draft-tokens {found}"
        )
    return min(found, config.max_draft_tokens)


class DraftControl:
    """Decides each step's depth. Not thread-safe."""

    def __init__(self, config: SpeculativeConfig, num_layers: int) -> None:
        fixed = num_layers if config.speculative == "mtp" else None
        self._controller = DepthController(num_layers, fixed=fixed)
        self._max_depth = num_layers
        self._recompute_boundary = config.recompute_boundary
        self._is_fixed = fixed is not None
        self._num_verifications = 0
        self._num_drafted = 0
        self._num_tested = [0] * num_layers
        self._num_right = [0] * num_layers

    def choose(self, num_decoding: int) -> int:
        """Of the next step. One that only computes prompts drafts as one request would."""
        return self._controller.choose(max(1, num_decoding))

    def saw(
        self,
        plan: StepPlan,
        result: StepResult,
        num_kept: Sequence[int],
        depth: int,
        seconds: float,
    ) -> None:
        """A step at `depth` is over. num_kept: of each row, how many of its tokens are in an
        output: none where its request had ended before, of which the time counts alone."""
        is_steady = bool(plan.rows) and not (plan.encode or plan.admissions)
        for row, done, kept in zip(plan.rows, result.rows, num_kept, strict=True):
            is_steady &= row.num_rows == 1 + depth and row.num_proposals == depth
            if kept and row.num_drafts:
                # Drafts behind the end of an output were neither right nor wrong.
                num_drafts = row.num_drafts if kept == len(done.token_ids) else kept
                num_right = min(kept, len(done.token_ids) - 1)
                self._num_verifications += 1
                self._num_drafted += num_drafts
                for layer in range(min(num_right + 1, num_drafts)):
                    self._num_tested[layer] += 1
                    self._num_right[layer] += layer < num_right
                self._controller.saw_drafts(num_drafts, num_right)
        if is_steady:
            self._controller.saw_step(num_requests=len(plan.rows), depth=depth, seconds=seconds)

    def stats(self) -> DraftStats:
        controller = self._controller
        return DraftStats(
            depth=controller.depth,
            acceptance_length=controller.acceptance_length,
            gain=None if self._is_fixed else controller.gain,
            num_verifications=self._num_verifications,
            num_drafted=self._num_drafted,
            num_tested=list(self._num_tested),
            num_right=list(self._num_right),
        )

    def calibrate(
        self,
        executor: Executor,
        layout: CacheLayout,
        config: SchedulerConfig,
        info: EngineInfo,
    ) -> None:
        """Time decode steps at every depth. Their requests have a scheduler of their own, so that
        nothing is left of them but numbers in pages that are free."""
        if self._is_fixed:
            return
        started = time.perf_counter()
        longest = _PROMPT_LEN + (1 + self._max_depth) * (_WARM_STEPS + _TIMED_STEPS) * (
            1 + self._max_depth
        )
        for size in _BATCHES:
            fits = size * (1 + self._max_depth) <= config.max_num_batched_tokens
            if size > config.max_num_seqs or not fits or longest + _PROMPT_LEN > info.max_model_len:
                break
            cache = CacheManager(layout, prefix_caching=False, has_drafts=True)
            scheduler = Scheduler(
                config,
                cache,
                max_model_len=info.max_model_len,
                eos_token_ids=(),
                seed=0,
                recompute_boundary=self._recompute_boundary,
            )
            for number in range(size):
                scheduler.add(_request(number, longest, info.vocab_size))
            for depth, seconds in _timed(scheduler, executor, size, self._max_depth):
                self._controller.calibrate(size, depth, seconds)
        _logger.info("timed drafts in %.1f s", time.perf_counter() - started)


def _request(number: int, num_tokens: int, vocab_size: int) -> NewRequest:
    prompt = [(7 * number + 3 * place) % vocab_size for place in range(_PROMPT_LEN)]
    params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
    return NewRequest(request_id=str(number), prompt_token_ids=prompt, params=params)


def _timed(
    scheduler: Scheduler, executor: Executor, size: int, max_depth: int
) -> Iterator[tuple[int, float]]:
    """(depth, seconds) of steady decode steps of `size` requests."""
    for depth in range(max_depth + 1):
        num_steady = 0
        while num_steady < _WARM_STEPS + _TIMED_STEPS:
            plan = scheduler.plan(depth)
            if plan is None or not plan.rows:
                return
            is_steady = len(plan.rows) == size and all(
                row.num_rows == 1 + depth and row.num_proposals == depth for row in plan.rows
            )
            started = time.perf_counter()
            result = executor.run(plan)
            seconds = time.perf_counter() - started
            scheduler.apply(plan, result)
            num_steady += is_steady
            if num_steady > _WARM_STEPS and is_steady:
                yield depth, seconds
