"""Makes the helpers of this directory, and the slow draft layers of tests/cpu/model, importable."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "model")]
