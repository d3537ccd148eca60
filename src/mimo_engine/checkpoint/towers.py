"""Load the towers: on the rank that encodes media, whole, in one float type.

Their parts of the main files and the audio tokenizer's own file are streamed once each, and copied
straight to their place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from tqdm import tqdm

from mimo_engine.checkpoint.index import open_checkpoint
from mimo_engine.checkpoint.remedies import refuse
from mimo_engine.checkpoint.tower_params import Tower
from mimo_engine.checkpoint.verify_towers import (
    open_audio_tokenizer,
    verify_audio_tokenizer,
    verify_towers,
)
from mimo_engine.config.media import MediaConfig
from mimo_engine.errors import ConfigError

__all__ = ["TowerWeights", "load_towers"]


TowerWeights = Mapping[Tower, dict[str, torch.Tensor]]
"""The parameters of every tower, by their names in its module. Codebooks are in float32, as stored:
the module rounds them where it must."""


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
    weights: dict[Tower, dict[str, torch.Tensor]] = {tower: {} for tower in Tower}
    sources = (*towers.sources.values(), *tokenizer.sources.values())
    num_values = sum(math.prod(source.param.shape) for source in sources)
    with tqdm(
        total=num_values,
        unit=" weights",
        unit_scale=True,
        desc="loading towers",
        disable=not progress,
    ) as bar:
        for files, plan in ((index, towers), (tokenizer_index, tokenizer)):
            for info, file in files.stream(plan.sources):
                param = plan.sources[info.name].param
                held_as = torch.float32 if param.is_codebook else dtype
                # A copy, also where nothing is converted: the mapping is the file's.
                tensor = file.read(info).to(device=device, dtype=held_as, copy=True)
                weights[param.tower][param.name] = tensor
                bar.update(tensor.numel())
    return weights
