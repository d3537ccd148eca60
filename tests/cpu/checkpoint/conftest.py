"""Small checkpoints with every layer kind, written by our own export."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from mimo_engine.checkpoint.export import (
    ExportFormat,
    export_checkpoint,
    export_config,
    parts_of,
)
from mimo_engine.checkpoint.params import parameter_specs
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
