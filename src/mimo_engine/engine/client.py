"""The asyncio end of an engine: requests in, streams of tokens out, a supervisor between.

What must hold: every submitted request ends, with an output that has a finish_reason or with an
exception; when the engine process ends, that happens at once; a request that nobody reads any more
is aborted. A dead engine is started again until it dies too often in a row.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import zmq.asyncio

from mimo_engine.config.engine import EngineConfig
from mimo_engine.engine.process import EngineProcess
from mimo_engine.errors import (
    ContextLengthError,
    EngineDeadError,
    EngineUnavailableError,
    MimoError,
    QueueFullError,
    RequestError,
)
from mimo_engine.messages import (
    Abort,
    EngineFailed,
    EngineInfo,
    EngineStats,
    NewRequest,
    StepOutputs,
    TokenOutput,
)
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.utils.logging import describe_failure

__all__ = ["AsyncEngineClient", "OutputStream", "RestartPolicy"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RestartPolicy:
    """A death is quick when the engine had been up for less than `stable_s` seconds."""

    max_quick_deaths: int = 5
    """So many quick deaths in a row, and the engine is not started again."""
    stable_s: float = 60.0
    first_delay_s: float = 1.0
    """Wait before the second restart in a row of quick deaths; doubled for each further one. The
    first restart is immediate."""

    def delay_s(self, quick_deaths: int) -> float:
        return 0.0 if quick_deaths <= 1 else self.first_delay_s * 2.0 ** (quick_deaths - 2)


class OutputStream:
    """The outputs of a group of requests, in the order in which they come.

    Iteration ends when each request of the group has had an output with a finish_reason. It raises
    when one fails: RequestError and QueueFullError as the engine refused it, EngineDeadError when
    the engine died. Leaving the `with` block aborts whatever has not ended.
    """

    def __init__(self, client: AsyncEngineClient, request_ids: Sequence[str]) -> None:
        self._client = client
        self._unfinished = dict.fromkeys(request_ids)
        self._queue: asyncio.Queue[TokenOutput | MimoError] = asyncio.Queue()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for request_id in list(self._unfinished):
            self.abort(request_id)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> TokenOutput:
        while self._unfinished:
            if not self._queue.empty():
                # A reader that lags never waits below, and must not keep the loop to itself.
                await asyncio.sleep(0)
            item = await self._queue.get()
            if isinstance(item, MimoError):
                raise item
            if item.request_id not in self._unfinished:
                continue
            if item.finish_reason is not None:
                del self._unfinished[item.request_id]
            if item.finish_reason == "error":
                raise _refusal_error(item)
            return item
        raise StopAsyncIteration

    def abort(self, request_id: str) -> None:
        """End one request now: nothing more comes for it."""
        del self._unfinished[request_id]
        self._client.abort(request_id)

    def put(self, item: TokenOutput | MimoError) -> None:
        """For the client alone."""
        self._queue.put_nowait(item)


def _refusal_error(output: TokenOutput) -> MimoError:
    message = output.error or "the engine refused the request"
    match output.error_kind:
        case "queue_full":
            return QueueFullError(message)
        case "context_length":
            return ContextLengthError(message, param=output.error_param)
        case "request":
            return RequestError(message, param=output.error_param)
        case None:
            return MimoError(message)


class AsyncEngineClient:
    """Starts an engine process, keeps one running, and talks to it. Lives in one event loop."""

    def __init__(
        self,
        config: EngineConfig,
        build: str,
        *,
        restart_policy: RestartPolicy | None = None,
    ) -> None:
        self._config = config
        self._build = build
        self._policy = restart_policy or RestartPolicy()
        self._context = zmq.asyncio.Context()
        self._process: EngineProcess | None = None
        """The latest one; it takes requests while `trouble` is None."""
        self._info: EngineInfo | None = None
        self._streams: dict[str, OutputStream] = {}
        self._supervisor: asyncio.Task[None] | None = None
        self._trouble: str | None = "the engine has not been started"
        self.stats = EngineStats()
        """As of the engine's last step."""
        self.num_restarts = 0

    @property
    def info(self) -> EngineInfo:
        assert self._info is not None, "start() first"
        return self._info

    @property
    def trouble(self) -> str | None:
        """None when requests are taken; otherwise why not, and whether that will change."""
        return self._trouble

    @property
    def engine_pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> None:
        """Start the engine and wait until it takes requests. EngineDeadError with its own words
        when it cannot start; there is no second try."""
        assert self._supervisor is None, "start() twice"
        self._process = EngineProcess(self._build, self._config, self._context)
        reply = await self._process.receive()
        if not isinstance(reply, EngineInfo):
            exit_text = await self._process.stop()
            message = reply.message if isinstance(reply, EngineFailed) else exit_text
            raise EngineDeadError(f"the engine did not start: {message}")
        self._enter_service(reply)
        self._supervisor = asyncio.create_task(self._supervise(self._process))

    async def close(self) -> None:
        """End the engine, also one that did not start. Requests in flight get EngineDeadError."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.gather(self._supervisor, return_exceptions=True)
        self._leave_service("the server is shutting down", "the server is shutting down")
        if self._process is not None:
            await self._process.stop()
        self._context.term()

    def submit(
        self, requests: Sequence[NewRequest], features: Sequence[SharedArrays] = ()
    ) -> OutputStream:
        """Start requests, whose ids must be new, as one stream. `features`: of their media, the
        same for all of them. EngineUnavailableError when no engine takes requests now."""
        if self._trouble is not None or self._process is None:
            raise EngineUnavailableError(self._trouble)
        stream = OutputStream(self, [request.request_id for request in requests])
        for request in requests:
            assert request.request_id not in self._streams, request.request_id
            self._streams[request.request_id] = stream
            self._process.send(request, features)
        return stream

    def abort(self, request_id: str) -> None:
        """End a request early; nothing happens when it has ended."""
        if self._streams.pop(request_id, None) is not None and self._process is not None:
            self._process.send(Abort(request_id=request_id))

    async def _supervise(self, process: EngineProcess) -> None:
        """Serve with one process after the other until there are too many quick deaths."""
        quick_deaths = 0
        try:
            while True:
                started = time.monotonic()
                last_words = await self._serve(process)
                exit_text = await process.stop()
                reason = last_words or exit_text
                self._leave_service(reason, "the engine process ended and is being started again")
                lived_s = time.monotonic() - started
                logger.error("the engine process ended after %.0f s: %s", lived_s, reason)
                quick_deaths = quick_deaths + 1 if lived_s < self._policy.stable_s else 1
                if quick_deaths >= self._policy.max_quick_deaths:
                    break
                await asyncio.sleep(self._policy.delay_s(quick_deaths))
                self.num_restarts += 1
                self._process = process = EngineProcess(self._build, self._config, self._context)
        except Exception as error:
            logger.error("the supervisor of the engine failed: %s", describe_failure(error))
            reason = f"{type(error).__name__}; the server's log says more"
        self._leave_service(
            reason,
            f"the engine process keeps ending and is not started again (last: {reason}); restart "
            "the server when the cause is mended",
        )

    async def _serve(self, process: EngineProcess) -> str | None:
        """Hand out what the engine sends until its process ends. Returns its last words."""
        last_words = None
        while (reply := await process.receive()) is not None:
            match reply:
                case EngineInfo():
                    self._enter_service(reply)
                case StepOutputs():
                    self._hand_out(reply)
                case EngineFailed(message=last_words):
                    pass
        return last_words

    def _enter_service(self, info: EngineInfo) -> None:
        self._info, self._trouble = info, None

    def _leave_service(self, reason: str, trouble: str) -> None:
        self._trouble = trouble
        self.stats = EngineStats()
        # One stream may hold several of the requests, and needs to hear of it once.
        streams = dict.fromkeys(self._streams.values())
        self._streams = {}
        for stream in streams:
            stream.put(EngineDeadError(f"the engine process ended: {reason}"))

    def _hand_out(self, step: StepOutputs) -> None:
        self.stats = step.stats
        for output in step.outputs:
            ended = output.finish_reason is not None
            find = self._streams.pop if ended else self._streams.get
            stream = find(output.request_id, None)
            # None: it was aborted while this was on its way.
            if stream is not None:
                stream.put(output)
