"""From what a user calls MODEL to a directory: a local path, a repository of the hub, or `demo`.

Only data files are ever fetched: configuration, templates and safetensors; no code, no pickles.
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError

from mimo_engine.errors import ConfigError

__all__ = ["CHECKPOINT_FILES", "DEMO", "resolve_model"]

DEMO = "demo"
"""The small model that comes with the package."""

CHECKPOINT_FILES = ("*.json", "*.jinja", "*.safetensors")

# Repository names as the hub allows them. One that starts with a dot or a slash is a path.
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def resolve_model(model: str, *, files: tuple[str, ...] = CHECKPOINT_FILES) -> Path:
    """The directory of `model`; a hub repository is downloaded into the hub's cache first.

    files are the name patterns to fetch. Raises ConfigError when there is no such directory and
    the hub cannot give it either.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model == DEMO:
        return _demo_dir()
    if path.exists():
        raise ConfigError(f"{model} is a file: pass the checkpoint directory that holds it")
    if not _HUB_NAME.fullmatch(model):
        raise ConfigError(
            f"{model} is neither a directory nor the name of a hub repository (OWNER/NAME)"
        )
    try:
        return Path(snapshot_download(model, allow_patterns=list(files)))
    except (OSError, HFValidationError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(
            f"{model} is not a local directory, and could not be fetched from the hub ({reason}): "
            "check the name and the connection, or download it and pass its directory"
        ) from error


def _demo_dir() -> Path:
    path = Path(str(resources.files("mimo_engine").joinpath("demo", "data", "fp8")))
    if not (path / "config.json").is_file():
        raise ConfigError("this installation has no demo model: train it with make demo")
    return path
