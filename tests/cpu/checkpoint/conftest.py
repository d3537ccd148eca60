"""Small checkpoints with every layer kind, written by our own export."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimo_engine.checkpoint.export import (
    ExportFormat,
    export_checkpoint,
    export_config,
    parts_of,
)
from mimo_engine.checkpoint.export_towers import TowerExport, towers_of, write_tower_configs
from mimo_engine.checkpoint.params import parameter_specs
from mimo_engine.checkpoint.tower_params import Tower, tower_params
from mimo_engine.checkpoint.towers import TowerWeights
from mimo_engine.cli.tower_files import (
    RELEASED_PREPROCESSOR,
    SMALL_AUDIO_TOKENIZER,
    SMALL_TOWERS,
)
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig, load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import ModelConfig, parse_model_config

DATA = Path(__file__).parents[2] / "data"


@dataclass(frozen=True, kw_only=True)
class SmallCheckpoint:
    """A checkpoint directory, its configuration and the plain weights it was made from."""

    model_dir: Path
    raw: dict[str, Any]
    weights: dict[str, torch.Tensor]

    @property
    def config(self) -> ModelConfig:
        return parse_model_config(self.raw)


@dataclass(frozen=True, kw_only=True)
class OmniCheckpoint(SmallCheckpoint):
    """One with towers: config.json and what goes with it are in the directory too."""

    media: MediaConfig
    towers: TowerWeights


@pytest.fixture(scope="session")
def shrunken() -> Callable[..., dict[str, Any]]:
    """The config.json of a member, shrunken to what a test can hold; keywords replace keys."""

    def make(member: str = "v2.5", **changes: Any) -> dict[str, Any]:
        raw = json.loads((DATA / f"config-mimo-{member}.json").read_text())
        raw |= {
            "num_hidden_layers": 3,
            "hybrid_layer_pattern": [0, 1, 0],
            "moe_layer_freq": [0, 1, 1],
            "hidden_size": 256,
            "num_attention_heads": 8,
            "swa_num_attention_heads": 8,
            "intermediate_size": 384,
            "moe_intermediate_size": 128,
            "n_routed_experts": 3,
            "num_experts_per_tok": 2,
            "vocab_size": 640,
        }
        return {**raw, **changes}

    return make


@pytest.fixture(scope="session")
def random_weights() -> Callable[..., dict[str, torch.Tensor]]:
    """Plain parameters of the whole model, seeded."""

    def make(config: ModelConfig, *, num_mtp_layers: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(7)
        specs = parameter_specs(config, num_mtp_layers=num_mtp_layers)
        return {
            name: torch.randn(spec.shape, generator=generator) * 0.05
            for name, spec in specs.items()
        }

    return make


@pytest.fixture
def small_checkpoint(
    tmp_path: Path,
    shrunken: Callable[..., dict[str, Any]],
    random_weights: Callable[..., dict[str, torch.Tensor]],
) -> Callable[..., SmallCheckpoint]:
    """Write a small checkpoint in the given format; further keywords replace config keys."""

    def make(
        stored: ExportFormat,
        *,
        num_mtp_layers: int = 0,
        name: str = "model",
        max_shard_bytes: int = 2**20,
        **changes: Any,
    ) -> SmallCheckpoint:
        raw = export_config(shrunken(**changes), stored)
        config = parse_model_config(raw)
        weights = random_weights(config, num_mtp_layers=num_mtp_layers)
        export_checkpoint(
            tmp_path / name,
            config,
            parts_of(weights),
            stored,
            num_mtp_layers=num_mtp_layers,
            max_shard_bytes=max_shard_bytes,
        )
        return SmallCheckpoint(model_dir=tmp_path / name, raw=raw, weights=weights)

    return make


@pytest.fixture
def omni_checkpoint(
    tmp_path: Path,
    shrunken: Callable[..., dict[str, Any]],
    random_weights: Callable[..., dict[str, torch.Tensor]],
) -> Callable[..., OmniCheckpoint]:
    """Write a small checkpoint with small towers; further keywords replace config keys."""

    def make(
        stored: ExportFormat,
        *,
        name: str = "model",
        has_training_state: bool = False,
        max_shard_bytes: int = 2**20,
        facts: MediaFacts | None = None,
        **changes: Any,
    ) -> OmniCheckpoint:
        model_dir = tmp_path / name
        towers = {key: SMALL_TOWERS[key] for key in ("vision_config", "audio_config")}
        raw = export_config(shrunken(**towers, **changes), stored)
        config = parse_model_config(raw)
        write_tower_configs(
            model_dir, audio_tokenizer=SMALL_AUDIO_TOKENIZER, preprocessor=RELEASED_PREPROCESSOR
        )
        (model_dir / "config.json").write_text(json.dumps(raw))
        media = load_media_config(
            model_dir, config.media, facts or MediaFacts(), hidden_size=config.hidden_size
        )
        weights, tower_weights = random_weights(config), _random_towers(media)
        export_checkpoint(
            model_dir,
            config,
            parts_of(weights),
            stored,
            towers=TowerExport(media=media, read=towers_of(tower_weights)),
            max_shard_bytes=max_shard_bytes,
        )
        if has_training_state:
            _add_training_state(model_dir / AUDIO_TOKENIZER_DIR / "model.safetensors")
        return OmniCheckpoint(
            model_dir=model_dir, raw=raw, weights=weights, media=media, towers=tower_weights
        )

    return make


def _add_training_state(path: Path) -> None:
    """What the releases have beside the codebooks and no reader needs: their moving averages, and a
    tensor of the speech decoder."""
    tensors = load_file(path)
    for name, tensor in list(tensors.items()):
        if name.endswith("_codebook.embed"):
            codebook = name.removesuffix("embed")
            tensors[f"{codebook}inited"] = torch.ones(1)
            tensors[f"{codebook}cluster_size"] = torch.ones(len(tensor))
            tensors[f"{codebook}embed_avg"] = tensor.clone()
    tensors["decoder.conv1.weight"] = torch.ones(2, 2, 3, dtype=torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


def _random_towers(media: MediaConfig) -> TowerWeights:
    generator = torch.Generator().manual_seed(5)
    weights: dict[Tower, dict[str, torch.Tensor]] = {tower: {} for tower in Tower}
    for param in tower_params(media):
        weights[param.tower][param.name] = torch.randn(param.shape, generator=generator)
    return weights
