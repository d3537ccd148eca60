"""Lets the property tests of media build on the memory worker of the others."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
