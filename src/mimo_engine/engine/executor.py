"""How a plan reaches the workers: in this process, or in one process a rank.

The only importer of `worker`. Every rank gets the same plan; rank 0 lives in the engine's process
and its result is the step's result.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection

import msgspec
import torch
import torch.distributed as dist

from mimo_engine.cache.groups import CacheLayout
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.media import MediaConfig
from mimo_engine.config.model import ModelConfig
from mimo_engine.distributed.groups import ProcessGroupComm, SingleRank
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import ConfigError, EngineDeadError
from mimo_engine.messages import MediaItem
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.scheduler.plan import StepPlan, StepResult
from mimo_engine.worker.runner import Pending
from mimo_engine.worker.worker import Worker, resolve_device

__all__ = ["Executor", "Pending", "build_executor"]

_COLLECTIVE_TIMEOUT = timedelta(seconds=600)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Allocate:
    """The one message to a rank that is not a plan."""

    layout: CacheLayout
    max_model_len: int


class Executor:
    """Runs plans, one at a time: on one rank, in this process."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker

    def kv_budget_bytes(self) -> int:
        """What the rank with the least memory can give to K and V."""
        return self.worker.kv_budget_bytes()

    def allocate(self, layout: CacheLayout, *, max_model_len: int) -> None:
        self.worker.allocate(layout, max_model_len=max_model_len)

    def add_media(self, items: Sequence[MediaItem], features: Sequence[SharedArrays]) -> None:
        """Features of a new request, for the plans that encode them."""
        assert self.worker.media is not None, "text alone is served: the core refuses media before"
        self.worker.media.add(items, features)

    def launch(self, plan: StepPlan) -> Pending:
        """Begin the step; its result can be waited for. Plans run in the order of their launch."""
        return self.worker.launch(plan)

    def run(self, plan: StepPlan) -> StepResult:
        return self.launch(plan).result()

    def close(self) -> None:
        """Nothing outlives the object."""


class _ParallelExecutor(Executor):
    """Rank 0 here, every other rank in a child; the ranks meet in their collectives.

    A child that dies breaks the next collective, which raises here; children end when their pipe
    closes, so none outlives this process.
    """

    def __init__(self, worker: Worker, pipes: list[Connection], budgets: list[int]) -> None:
        super().__init__(worker)
        self._pipes = pipes
        self._budgets = budgets

    def kv_budget_bytes(self) -> int:
        return min(super().kv_budget_bytes(), *self._budgets)

    def allocate(self, layout: CacheLayout, *, max_model_len: int) -> None:
        self._send(_Allocate(layout=layout, max_model_len=max_model_len))
        super().allocate(layout, max_model_len=max_model_len)

    def launch(self, plan: StepPlan) -> Pending:
        self._send(plan)
        try:
            return super().launch(plan)
        except BaseException:
            # The ranks no longer agree on what comes next: this was their last plan.
            self._close_pipes()
            raise

    def _close_pipes(self) -> None:
        for pipe in self._pipes:
            pipe.close()

    def close(self) -> None:
        self._close_pipes()
        dist.destroy_process_group()

    def _send(self, message: _Allocate | StepPlan) -> None:
        data = msgspec.msgpack.encode(message)
        try:
            for pipe in self._pipes:
                pipe.send_bytes(data)
        except OSError as error:
            raise EngineDeadError(f"a tensor-parallel rank has ended: {error}") from error


def build_executor(
    config: EngineConfig,
    model_config: ModelConfig,
    *,
    num_live_tokens: int,
    num_draft_layers: int = 0,
    media: MediaConfig | None = None,
) -> Executor:
    """Start the ranks and load their weights; rank 0 loads the towers of `media` too."""
    tp_size = config.parallel.tensor_parallel_size
    if tp_size == 1:
        # Kernels and graphs run on the current device, whatever tensors they are given.
        _take_device(config, 0)
        worker = Worker(
            config,
            model_config,
            plan=ParallelPlan(),
            comm=SingleRank(),
            num_live_tokens=num_live_tokens,
            num_draft_layers=num_draft_layers,
            media=media,
        )
        return Executor(worker)
    if resolve_device(config.device).type == "cuda" and torch.cuda.device_count() < tp_size:
        raise ConfigError(
            f"--tensor-parallel-size {tp_size}: this torch sees {torch.cuda.device_count()} GPUs"
        )
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as directory:
        share = _Share(
            config,
            model_config,
            num_live_tokens,
            num_draft_layers,
            os.path.join(directory, "rendezvous"),
            media,
        )
        pipes = []
        for tp_rank in range(1, tp_size):
            ours, theirs = context.Pipe()
            arguments = (theirs, share, tp_rank)
            context.Process(target=_rank_main, args=arguments, daemon=True).start()
            theirs.close()
            pipes.append(ours)
        # Ranks that cannot even begin would be waited for at the rendezvous.
        for pipe in pipes:
            _receive(pipe)
        worker = _join(share, 0)
        budgets = [int(_receive(pipe)) for pipe in pipes]
    return _ParallelExecutor(worker, pipes, budgets)


@dataclass(frozen=True, slots=True)
class _Share:
    """What every rank is started with."""

    config: EngineConfig
    model_config: ModelConfig
    num_live_tokens: int
    num_draft_layers: int
    rendezvous: str
    """A file where the ranks meet."""
    media: MediaConfig | None


def _join(share: _Share, tp_rank: int) -> Worker:
    """Meet the other ranks and load this one's share."""
    tp_size = share.config.parallel.tensor_parallel_size
    device = _take_device(share.config, tp_rank)
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{share.rendezvous}",
        rank=tp_rank,
        world_size=tp_size,
        timeout=_COLLECTIVE_TIMEOUT,
    )
    group = dist.group.WORLD
    assert group is not None
    return Worker(
        share.config,
        share.model_config,
        plan=ParallelPlan(tp_size=tp_size, tp_rank=tp_rank),
        comm=ProcessGroupComm(group),
        num_live_tokens=share.num_live_tokens,
        num_draft_layers=share.num_draft_layers,
        media=share.media,
    )


def _take_device(config: EngineConfig, tp_rank: int) -> torch.device:
    device = resolve_device(config.device, tp_rank)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    return device


def _receive(pipe: Connection) -> bytes:
    try:
        return pipe.recv_bytes()
    except EOFError as error:
        raise EngineDeadError("a tensor-parallel rank ended while it started") from error


def _rank_main(pipe: Connection, share: _Share, tp_rank: int) -> None:
    """A child's life: say that it has a device, join, say its budget, allocate, and run plans
    until the pipe closes."""
    _take_device(share.config, tp_rank)
    pipe.send_bytes(b"")
    worker = _join(share, tp_rank)
    pipe.send_bytes(str(worker.kv_budget_bytes()).encode())
    read_plan: Callable[[bytes], StepPlan] = msgspec.msgpack.Decoder(StepPlan).decode
    try:
        start = msgspec.msgpack.decode(pipe.recv_bytes(), type=_Allocate)
        worker.allocate(start.layout, max_model_len=start.max_model_len)
        while True:
            worker.run(read_plan(pipe.recv_bytes()))
    except EOFError:
        pass
