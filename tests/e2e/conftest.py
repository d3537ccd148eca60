"""Makes the helpers of this directory and the one above importable, also in the processes that its
tests start."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
