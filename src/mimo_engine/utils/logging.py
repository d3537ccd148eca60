"""One logging set-up for every process of the engine.

Library code asks for `logging.getLogger(__name__)` and nothing else; only a program's entry point
calls `setup_logging`, so that using the package from Python leaves the host's logging alone.
"""

from __future__ import annotations

import logging
import sys

__all__ = ["setup_logging"]

_FORMAT = "%(asctime)s %(levelname)s %(processName)s %(name)s: %(message)s"


def setup_logging() -> None:
    """Send this package's records to stderr, one line each, with the time. Twice does no harm."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(_FORMAT))
    logger = logging.getLogger("mimo_engine")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
