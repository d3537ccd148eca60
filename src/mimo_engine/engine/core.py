"""The engine: a scheduler, an executor, and the loop body that joins them.

    core.add(request) ...          from clients
    while core.has_work:
        outputs = core.step()      plan -> execute -> apply

It runs in the client's process (`LLM`) or in its own (`engine/process.py`); it owns no thread, no
socket and no clock.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from mimo_engine.cache.manager import CacheManager
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.model import load_model_config
from mimo_engine.engine.executor import Executor, build_executor
from mimo_engine.messages import EngineInfo, EngineStats, NewRequest, TokenOutput
from mimo_engine.scheduler.scheduler import Scheduler

__all__ = ["EngineCore", "build_engine"]


class EngineCore:
    """Not thread-safe: one caller adds, aborts and steps."""

    def __init__(
        self, executor: Executor, scheduler: Scheduler, info: EngineInfo
    ) -> None:
        self._executor = executor
        self._scheduler = scheduler
        self._info = info

    @property
    def has_work(self) -> bool:
        return self._scheduler.has_work

    def add(self, request: NewRequest) -> None:
        """Queue a request. Raises QueueFullError or a RequestError; nothing else is affected."""
        _check_vocabulary(request, self._info.vocab_size)
        self._scheduler.add(request)

    def abort(self, request_id: str) -> bool:
        """End a request; False when it is not (or no longer) known."""
        return self._scheduler.abort(request_id)

    def step(self) -> list[TokenOutput]:
        """Run one step, if there is anything to run, and return what it produced."""
        plan = self._scheduler.plan()
        if plan is None:
            return []
        return self._scheduler.apply(plan, self._executor.run(plan))

    def stats(self) -> EngineStats:
        return self._scheduler.stats()

    def info(self) -> EngineInfo:
        return self._info

    def close(self) -> None:
        self._executor.close()
