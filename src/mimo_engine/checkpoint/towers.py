"""Load the towers: on the rank that encodes media, whole, in one float type.

Their parts of the main files and the audio tokenizer's own file are streamed once each, and copied
straight to their place.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from tqdm import tqdm

from mimo_engine.checkpoint.index import CheckpointIndex, open_checkpoint
from mimo_engine.checkpoint.remedies import refuse
from mimo_engine.checkpoint.tower_params import Tower, TowerParam
from mimo_engine.checkpoint.verify_towers import (
    TowerPlan,
    open_audio_tokenizer,
    verify_audio_tokenizer,
    verify_towers,
)
from mimo_engine.config.media import MediaConfig
from mimo_engine.errors import ConfigError

__all__ = ["TowerWeights", "load_towers"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerWeights:
    """The parameters of every tower, by their names in its module."""

    vision: dict[str, torch.Tensor]
    audio_encoder: dict[str, torch.Tensor]
    audio_tokenizer: dict[str, torch.Tensor]
    """Codebooks in float32, as stored: the module rounds them where it must."""

    def of(self, tower: Tower) -> dict[str, torch.Tensor]:
        """The parameters of one tower."""
        return {
            Tower.VISION: self.vision,
            Tower.AUDIO_ENCODER: self.audio_encoder,
            Tower.AUDIO_TOKENIZER: self.audio_tokenizer,
        }[tower]


def load_towers(
    model_dir: Path,
    media: MediaConfig,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    progress: bool = False,
) -> TowerWeights:
    """The towers that `media` describes, of the checkpoint in `model_dir`.

    dtype: float32 or bfloat16, of all but the codebooks. progress: a bar on stderr.
    Raises CheckpointError for anything that `verify_towers` and `verify_audio_tokenizer` find;
    ConfigError for float16, whose range the vision tower leaves (vision.md 2.9).
    """
    if dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"the towers run in bfloat16 or float32, not in {dtype}")
    index = open_checkpoint(model_dir)
    tokenizer_index = open_audio_tokenizer(model_dir)
    towers = verify_towers(index, media)
    tokenizer = verify_audio_tokenizer(tokenizer_index, media)
    refuse(model_dir, [*towers.problems, *tokenizer.problems])
    sources = (*towers.sources.values(), *tokenizer.sources.values())
    loaded: dict[TowerParam, torch.Tensor] = {}
    num_values = sum(math.prod(source.param.shape) for source in sources)
    with tqdm(
        total=num_values,
        unit=" weights",
        unit_scale=True,
        desc="loading towers",
        disable=not progress,
    ) as bar:
        for files, plan in ((index, towers), (tokenizer_index, tokenizer)):
            for param, tensor in _stream(files, plan, dtype, torch.device(device)):
                loaded[param] = tensor
                bar.update(tensor.numel())
    # By tower, in the order of the parameters.
    parts = {
        tower: {s.param.name: loaded[s.param] for s in sources if s.param.tower is tower}
        for tower in Tower
    }
    return TowerWeights(
        vision=parts[Tower.VISION],
        audio_encoder=parts[Tower.AUDIO_ENCODER],
        audio_tokenizer=parts[Tower.AUDIO_TOKENIZER],
    )


def _stream(
    index: CheckpointIndex, plan: TowerPlan, dtype: torch.dtype, device: torch.device
) -> Iterator[tuple[TowerParam, torch.Tensor]]:
    """Every parameter of `plan`, in the order of the files."""
    wanted = (info for info in index.tensors.values() if info.name in plan.sources)
    for file_name, tensors in groupby(wanted, key=lambda info: info.file):
        file = index.open_file(file_name)
        for info in tensors:
            param = plan.sources[info.name].param
            held_as = torch.float32 if param.is_codebook else dtype
            # A copy, also where nothing is converted: the mapping is the file's.
            yield param, file.read(info).to(device=device, dtype=held_as, copy=True)
