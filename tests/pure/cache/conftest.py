"""Lets tests share `draft_rows.py`, those of the scheduler as well."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
