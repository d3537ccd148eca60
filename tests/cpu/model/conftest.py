"""Makes the helpers of this directory importable, also in the processes that its tests start."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
