"""One logging set-up for every process of the engine.

Library code asks for `logging.getLogger(__name__)` and nothing else; only a program's entry point
calls `setup_logging`, so that using the package from Python leaves the host's logging alone.
"""

from __future__ import annotations

import logging
import sys
import traceback

__all__ = ["describe_failure", "setup_logging"]

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"


def setup_logging() -> None:
    """Send this package's records to stderr, one line each, with the time. Twice does no harm."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("mimo_engine")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def describe_failure(
    error: BaseException, *, with_message: tuple[type[BaseException], ...] = ()
) -> str:
    """Types and frames of `error` and of what led to it, without messages.

    For failures while a request is served: a message may quote the request (KeyError and
    UnicodeError do), and no log holds a prompt unless that was asked for. The reason that the
    operating system gives for an OSError is kept, and so are messages of the types `with_message`,
    which the caller knows to quote nothing.
    """
    lines: list[str] = []
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        reason = one.strerror if isinstance(one, OSError) else None
        if isinstance(one, with_message):
            reason = str(one)
        lines.append(f"{type(one).__qualname__}{f': {reason}' if reason else ''}\n")
        lines += traceback.format_tb(one.__traceback__)
        one = one.__cause__ or one.__context__
    return "".join(lines).rstrip()
