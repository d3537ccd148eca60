"""The engine in its own process: the child's loop, and the handle its parent holds.

One `EngineProcess` is one incarnation: a process, and a socket in a private directory that nothing
else ever uses, so a restarted engine cannot read what was meant for the one before it. What must
hold: a parent always learns that the child ended, after all the child said before; a child never
outlives its parent.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import multiprocessing
import os
import pkgutil
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Sequence
from types import FrameType
from typing import NoReturn, Protocol

import msgspec
import zmq
import zmq.asyncio
from tqdm import tqdm

from mimo_engine.config.engine import EngineConfig
from mimo_engine.engine.features import (
    FeatureReceiver,
    FeatureSender,
    feature_channel,
    raise_file_limit,
)
from mimo_engine.errors import ContextLengthError, MimoError, QueueFullError, RequestError
from mimo_engine.messages import (
    Abort,
    EngineFailed,
    EngineInfo,
    EngineReply,
    EngineRequest,
    EngineStats,
    NewRequest,
    StepOutputs,
    TokenOutput,
)
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.utils.logging import describe_failure, setup_logging

__all__ = ["Core", "EngineProcess"]

STOP_TIMEOUT_S = 5.0
LAST_WORDS_MS = 100
"""How long a message may take from the socket of a process that has ended to its reader."""

logger = logging.getLogger(__name__)


class Core(Protocol):
    """What the process runs: `engine.core.EngineCore`, or a fake one in a test."""

    @property
    def has_work(self) -> bool: ...
    def add(self, request: NewRequest, features: Sequence[SharedArrays] = ()) -> None: ...
    def abort(self, request_id: str) -> bool: ...
    def step(self) -> list[TokenOutput]: ...
    def stats(self) -> EngineStats: ...
    def info(self) -> EngineInfo: ...
    def close(self) -> None: ...


class EngineProcess:
    """The parent's end. Belongs to the event loop that made it.

    `build`, as "module:function", makes the Core from the config in the child: this process need
    not import what the engine needs.
    """

    def __init__(self, build: str, config: EngineConfig, context: zmq.asyncio.Context) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="mimo-engine-")
        self._socket = context.socket(zmq.PAIR)
        # No limits: neither end may ever wait for the other to read.
        self._socket.set_hwm(0)
        self._socket.bind(_address(self._directory.name))
        ours, theirs = feature_channel()
        self._features = FeatureSender(ours)
        self._process = multiprocessing.get_context("spawn").Process(
            target=_run_engine,
            args=(build, config, self._directory.name, theirs),
            name="mimo-engine",
        )
        self._process.start()
        theirs.close()
        # Not a daemon, which could have no processes of its own for further ranks; so an
        # interpreter that exits without stop() would wait for it.
        atexit.register(self._process.kill)
        self._poller = zmq.asyncio.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._process.sentinel, zmq.POLLIN)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(EngineReply)

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, message: EngineRequest, features: Sequence[SharedArrays] = ()) -> None:
        """Queue a message, and the features of its media. Lost when the process has ended, which
        `receive` then reports."""
        if features and isinstance(message, NewRequest):
            self._features.send(message.request_id, features)
        self._socket.send(self._encoder.encode(message))

    async def receive(self) -> EngineReply | None:
        """The next message; None once the process has ended and all it sent has been read."""
        events = dict(await self._poller.poll())
        if self._socket not in events and not await self._socket.poll(LAST_WORDS_MS):
            return None
        return self._decoder.decode(await self._socket.recv())

    async def stop(self) -> str:
        """End the process if it still runs, free what it held, and say how it ended. A call that
        was cancelled is mended by another one."""
        self._process.terminate()
        await asyncio.to_thread(self._process.join, STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            await asyncio.to_thread(self._process.join)
        atexit.unregister(self._process.kill)
        self._features.close()
        self._socket.close(linger=0)
        self._directory.cleanup()
        return _describe_exit(self._process.exitcode)


def _describe_exit(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return f"killed by {signal.Signals(-exit_code).name}"
    return f"exit code {exit_code}"


def _address(directory: str) -> str:
    return f"ipc://{directory}/engine"


def _run_engine(build: str, config: EngineConfig, directory: str, features: socket.socket) -> None:
    """The child, from its first line to its last. Exits with 1 on any failure."""
    setup_logging()
    raise_file_limit()
    # tqdm's own lock is a semaphore of the system, which a process that is killed leaves behind.
    tqdm.set_lock(threading.RLock())
    # Ctrl-C reaches the whole process group; the parent decides when the engine ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    threading.Thread(target=_end_with_parent, args=(directory,), daemon=True).start()
    receiver = FeatureReceiver(features)
    with zmq.Context() as context, context.socket(zmq.PAIR) as messages:
        messages.set_hwm(0)
        messages.linger = 1000
        messages.connect(_address(directory))
        has_served = False
        try:
            core: Core = pkgutil.resolve_name(build)(config)
            try:
                messages.send(msgspec.msgpack.encode(core.info()))
                has_served = True
                _loop(core, messages, receiver)
            finally:
                core.close()
        except Exception as error:
            _fail(messages, _last_words(error, has_served=has_served))


def _exit_on_signal(number: int, _frame: FrameType | None) -> NoReturn:
    signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def _end_with_parent(directory: str) -> None:
    """A step or a load may take minutes, so it is not the loop that watches. Cleans up for the
    parent, which could not."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    shutil.rmtree(directory, ignore_errors=True)
    os._exit(1)


def _last_words(error: Exception, *, has_served: bool) -> str:
    """What the parent is told, whose log and clients it reaches. What nobody expected is logged."""
    if isinstance(error, MimoError) and not isinstance(error, RequestError):
        return str(error)
    name = type(error).__name__
    if not has_served:
        # There is no request yet that a message could quote.
        logger.exception("the engine failed")
        return f"{name}: {error}"
    # torch's errors are RuntimeErrors: they speak of shapes and memory.
    description = describe_failure(error, with_message=(RuntimeError,))
    logger.error("the engine failed: %s", description)
    return f"{name}; the server's log says more"


def _fail(messages: zmq.Socket[bytes], message: str) -> NoReturn:
    # It ends anyway: a signal of the parent, once that has read this, would only break into the
    # interpreter's own last steps.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    messages.send(msgspec.msgpack.encode(EngineFailed(message=message)))
    sys.exit(1)


def _loop(core: Core, messages: zmq.Socket[bytes], features: FeatureReceiver) -> NoReturn:
    """Take what came, run a step, say what it did; wait only when there is nothing to run."""
    encoder = msgspec.msgpack.Encoder()
    decoder = msgspec.msgpack.Decoder(EngineRequest)
    while True:
        outputs = _take_messages(core, messages, decoder, features)
        if core.has_work:
            outputs += core.step()
        messages.send(encoder.encode(StepOutputs(outputs=outputs, stats=core.stats())))


def _take_messages(
    core: Core,
    messages: zmq.Socket[bytes],
    decoder: msgspec.msgpack.Decoder[EngineRequest],
    features: FeatureReceiver,
) -> list[TokenOutput]:
    """Apply every message that waits, the first of them awaited when idle. Returns refusals."""
    refusals: list[TokenOutput] = []
    flags = zmq.NOBLOCK if core.has_work else zmq.Flag(0)
    while True:
        try:
            message = decoder.decode(messages.recv(flags))
        except zmq.Again:
            return refusals
        flags = zmq.NOBLOCK
        match message:
            case Abort(request_id=request_id):
                core.abort(request_id)
            case NewRequest(request_id=request_id, media=media):
                try:
                    core.add(message, features.take(request_id, media))
                except (RequestError, QueueFullError) as error:
                    refusals.append(_refusal(request_id, error))


def _refusal(request_id: str, error: RequestError | QueueFullError) -> TokenOutput:
    match error:
        case QueueFullError():
            kind = "queue_full"
        case ContextLengthError():
            kind = "context_length"
        case RequestError():
            kind = "request"
    return TokenOutput(
        request_id=request_id,
        token_ids=[],
        finish_reason="error",
        error=str(error),
        error_kind=kind,
        error_param=error.param if isinstance(error, RequestError) else None,
    )
