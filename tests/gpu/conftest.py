"""This folder needs a GPU. Without one it is left out as a whole, never test by test."""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
