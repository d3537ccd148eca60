"""MODEL, where only its configuration is wanted: config.json, a directory, or a name on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mimo_engine.config.model import ModelConfig
from mimo_engine.config.reader import read_json_object
from mimo_engine.errors import ConfigError
from mimo_engine.utils.hub import resolve_model

__all__ = ["num_mtp_layers", "read_beside_config", "read_config_json"]

USUAL_MTP_LAYERS = 3
"""Every release has three, though few of their configs say so (mtp.md 5.1)."""


def read_config_json(model: str) -> dict[str, Any]:
    """The JSON object, unchecked but for being one. Raises ConfigError."""
    path = Path(model).expanduser()
    if not path.is_file():
        path = resolve_model(model, files=("config.json",)) / "config.json"
    return read_json_object(path)


def read_beside_config(model: str, name: str) -> dict[str, Any] | None:
    """The JSON object in file `name` of the checkpoint; None where MODEL has no such file, or is a
    config.json alone. Raises ConfigError."""
    if Path(model).expanduser().is_file():
        return None
    path = resolve_model(model, files=(name,)) / name
    return read_json_object(path) if path.is_file() else None


def num_mtp_layers(asked: int | None, config: ModelConfig) -> int:
    """Draft layers: as asked for, else as config.json says, else as every release has."""
    counts = (asked, config.num_mtp_layers, USUAL_MTP_LAYERS)
    count = next(count for count in counts if count is not None)
    if count < 0:
        raise ConfigError(f"--num-mtp-layers must be 0 or more, not {count}")
    return count
