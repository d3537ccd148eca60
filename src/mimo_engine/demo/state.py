"""What a run leaves for the next one: tensors in files of a limited size, and a record.

In bfloat16 it is half as large, and the next run starts from rounded weights; in float32 it goes on
as if it had not been cut. Small tensors, counts among them, stay as they are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from mimo_engine.checkpoint.synthetic_tokenizer import Merge
from mimo_engine.errors import CheckpointError

__all__ = ["RunRecord", "load_state", "save_state"]

_RECORD = "run.json"
_MAX_PART_BYTES = 15 * 2**20
_SMALL = 4096
"""Elements of tensors that are never rounded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """Everything about a training that is no tensor."""

    merges: tuple[Merge, ...]
    """Of the tokenizer."""
    seed: int
    step: int
    """Steps taken, by all runs."""
    spent: float
    """Of the budget, by all runs."""
    is_audio_fitted: bool
    notes: dict[str, Any] = field(default_factory=dict)
    """For people: losses, results."""


def save_state(
    folder: Path, tensors: Mapping[str, torch.Tensor], record: RunRecord, dtype: torch.dtype
) -> None:
    """Write state-0.safetensors ... and run.json; a large tensor of zeros alone is named there."""
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("state-*.safetensors"):
        old.unlink()
    parts: list[dict[str, torch.Tensor]] = [{}]
    zeros: dict[str, list[int]] = {}
    size = 0
    for name, tensor in tensors.items():
        kept = tensor.detach().cpu()
        if kept.numel() > _SMALL:
            kept = kept.to(dtype)
            if not kept.any():
                zeros[name] = list(kept.shape)
                continue
        if size + kept.nbytes > _MAX_PART_BYTES and parts[-1]:
            parts.append({})
            size = 0
        parts[-1][name] = kept.contiguous()
        size += kept.nbytes
    for index, part in enumerate(parts):
        save_file(part, folder / f"state-{index}.safetensors")
    text = json.dumps({**asdict(record), "zeros": zeros}, indent=1, ensure_ascii=False)
    (folder / _RECORD).write_text(text + "\n", encoding="utf-8")


def load_state(folder: Path) -> tuple[dict[str, torch.Tensor], RunRecord]:
    """What `save_state` wrote. Raises CheckpointError."""
    path = folder / _RECORD
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give the folder that a run has written")
    raw = json.loads(path.read_text(encoding="utf-8"))
    merges = tuple((first, second) for first, second in raw.pop("merges"))
    zeros: dict[str, list[int]] = raw.pop("zeros")
    tensors = {name: torch.zeros(shape) for name, shape in zeros.items()}
    for part in sorted(folder.glob("state-*.safetensors")):
        tensors |= load_file(part)
    return tensors, RunRecord(merges=merges, **raw)
