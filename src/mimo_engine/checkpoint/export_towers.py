"""Write the towers as the releases have them: what `towers.py` reads, in reverse.

Vision tower and audio encoder go into the main shards (`export.py`), the audio tokenizer into a
directory of its own. Plain floats throughout; codebooks in float32.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mimo_engine.checkpoint.names import tower_tensor_name
from mimo_engine.checkpoint.tower_params import (
    TowerParam,
    audio_encoder_params,
    audio_tokenizer_params,
    vision_params,
)
from mimo_engine.checkpoint.towers import TowerWeights
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig

__all__ = [
    "TowerExport",
    "TowerReader",
    "export_audio_tokenizer",
    "main_tower_tensors",
    "towers_of",
    "write_tower_configs",
]

TowerReader = Callable[[TowerParam], torch.Tensor]
"""Gives one parameter of a tower, in any float dtype."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerExport:
    """The towers of a checkpoint to write."""

    media: MediaConfig
    read: TowerReader


def towers_of(weights: TowerWeights) -> TowerReader:
    """Read the parameters as `load_towers` returns them."""
    return lambda param: weights[param.tower][param.name]


def write_tower_configs(
    model_dir: Path, *, audio_tokenizer: Mapping[str, Any], preprocessor: Mapping[str, Any]
) -> None:
    """Write audio_tokenizer/config.json and preprocessor_config.json."""
    folder = model_dir / AUDIO_TOKENIZER_DIR
    folder.mkdir(parents=True, exist_ok=True)
    for path, content in (
        (folder / "config.json", audio_tokenizer),
        (model_dir / "preprocessor_config.json", preprocessor),
    ):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main_tower_tensors(
    towers: TowerExport, dtype: torch.dtype
) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of everything that the towers have in the main files."""
    params = (*vision_params(towers.media.vision), *audio_encoder_params(towers.media.audio))
    for param in params:
        yield tower_tensor_name(param), _stored(towers, param, dtype)


def export_audio_tokenizer(model_dir: Path, towers: TowerExport, dtype: torch.dtype) -> None:
    """Write audio_tokenizer/model.safetensors."""
    folder = model_dir / AUDIO_TOKENIZER_DIR
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        tower_tensor_name(param): _stored(
            towers, param, torch.float32 if param.is_codebook else dtype
        )
        for param in audio_tokenizer_params(towers.media.audio_tokenizer)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _stored(towers: TowerExport, param: TowerParam, dtype: torch.dtype) -> torch.Tensor:
    tensor = towers.read(param)
    assert tensor.shape == param.shape, (param, tensor.shape)
    return tensor.to(dtype).contiguous()
