"""`mimo-engine serve`: the HTTP server. Every flag is a field of the config tree."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from tyro.conf import PositionalRequiredArgs

from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.server import ServerConfig
from mimo_engine.server.run import run_server
from mimo_engine.utils.hub import resolve_model
from mimo_engine.utils.logging import setup_logging


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Serve the OpenAI API over HTTP. MODEL is a directory or a name on the hub."""

    engine: PositionalRequiredArgs[EngineConfig]
    server: ServerConfig = field(default_factory=ServerConfig)


def run(command: Command) -> int:
    setup_logging()
    model_dir = resolve_model(command.engine.model)
    name = command.server.served_model_name
    if name is None and not Path(command.engine.model).expanduser().is_dir():
        # The hub's cache names a directory after a commit: the repository's own name is better.
        name = command.engine.model
    return run_server(
        replace(command.engine, model=str(model_dir)),
        replace(command.server, served_model_name=name),
        "mimo_engine.engine.core:build_engine",
    )
