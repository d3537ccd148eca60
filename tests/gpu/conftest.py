"""This folder needs a GPU. Without one it is left out as a whole, never test by test."""

import torch

if not torch.cuda.is_available():
    collect_ignore_glob = ["test_*.py"]
