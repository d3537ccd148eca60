"""Features beside the messages: memory files, handed from process to process over a Unix socket.

The messages of a request go through zmq, which cannot carry descriptors; its features (one memory
file an item, multimodal/shared_arrays.py) go through a socket pair as SCM_RIGHTS. Neither waits for
the other: the sender has a thread, so that a receiver that is busy or stopped holds nobody up, and
the receiver has one, so that a request's features are there, or on their way, when its message is
read. The kernel owns what is under way: when either process is killed, it is freed.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from mimo_engine.errors import QueueFullError
from mimo_engine.messages import MediaItem
from mimo_engine.multimodal.shared_arrays import SharedArrays

__all__ = ["FeatureReceiver", "FeatureSender", "feature_channel", "raise_file_limit"]

_MAX_FDS = 64
_MAX_ID_BYTES = 256

logger = logging.getLogger(__name__)


def feature_channel() -> tuple[socket.socket, socket.socket]:
    """(the sender's end, the receiver's). A packet is a request's id with files of it."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def raise_file_limit() -> None:
    """As many open files as the system lets this process have: each piece of media is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class FeatureSender:
    """Belongs to the client's process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="features")

    def send(self, request_id: str, features: Sequence[SharedArrays]) -> None:
        """Send in the background. Lost when the receiver has ended, which its owner then sees."""
        self._thread.submit(self._send, request_id.encode(), features)

    def close(self) -> None:
        # A send that waits for a receiver that has stopped ends here.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.shutdown(wait=True, cancel_futures=True)
        self._socket.close()

    def _send(self, request_id: bytes, features: Sequence[SharedArrays]) -> None:
        try:
            for first in range(0, len(features), _MAX_FDS):
                fds = [shared.fileno() for shared in features[first : first + _MAX_FDS]]
                socket.send_fds(self._socket, [request_id], fds)
        except OSError as error:
            # As text: whoever keeps the record must not keep the features on the error's frames.
            logger.warning("the features of a request were not sent: %s", str(error))


class FeatureReceiver:
    """Belongs to the engine's process."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._fds: dict[str, list[int]] = {}
        self._is_over = False
        self._truncated: set[str] = set()
        self._abandoned: set[str] = set()
        """Requests that were given up: what still comes for them is closed."""
        self._changed = threading.Condition()
        threading.Thread(target=self._receive, name="features", daemon=True).start()

    def take(self, request_id: str, items: Sequence[MediaItem]) -> list[SharedArrays]:
        """The features of a request, whose message has come. QueueFullError when there was no
        descriptor left for them."""
        if not items:
            return []
        with self._changed:
            self._changed.wait_for(lambda: self._has_come(request_id, len(items)))
            fds = self._fds.pop(request_id, [])
            is_lost = len(fds) < len(items)
            if is_lost:
                self._truncated.discard(request_id)
                self._abandoned.add(request_id)
        if is_lost:
            _close(fds)
            raise QueueFullError("the engine has no file descriptors left for media: try later")
        return [SharedArrays.from_fd(fd, item.arrays) for fd, item in zip(fds, items, strict=True)]

    def _has_come(self, request_id: str, count: int) -> bool:
        num_here = len(self._fds.get(request_id, ()))
        return num_here >= count or request_id in self._truncated or self._is_over

    def _receive(self) -> None:
        while True:
            try:
                data, fds, flags, _ = socket.recv_fds(self._socket, _MAX_ID_BYTES, _MAX_FDS)
            except OSError:
                data, fds, flags = b"", [], 0
            with self._changed:
                if not data:
                    self._is_over = True
                elif data.decode() in self._abandoned:
                    _close(fds)
                else:
                    request_id = data.decode()
                    self._fds.setdefault(request_id, []).extend(fds)
                    if flags & socket.MSG_CTRUNC:
                        self._truncated.add(request_id)
                self._changed.notify_all()
                if self._is_over:
                    return


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        os.close(fd)
