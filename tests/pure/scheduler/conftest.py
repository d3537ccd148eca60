"""Lets property tests share the simulated worker, and with the cache's tests its draft rows."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "cache")]
