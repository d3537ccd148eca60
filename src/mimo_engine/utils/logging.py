"""One logging set-up for every process of the engine.

Library code asks for `logging.getLogger(__name__)` and nothing else; only a program's entry point
calls `setup_logging`, so that using the package from Python leaves the host's logging alone.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["LEVELS", "setup_logging"]

LEVELS = ("debug", "info", "warning", "error")
_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"


def setup_logging(level: str = "info") -> None:
    """Send this package's records of `level` and above to stderr, one line each, with the time.

    Calling it again replaces the level and the handler. ValueError: an unknown level.
    """
    if level not in LEVELS:
        raise ValueError(f"the log level is {level!r}; choose one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("mimo_engine")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
