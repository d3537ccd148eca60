"""Makes the helpers beside the test folders importable (tests/media_files.py)."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
