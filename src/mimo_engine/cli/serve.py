"""`mimo-engine serve`: the HTTP server. All flags are fields of the config tree."""

from __future__ import annotations

from dataclasses import dataclass, field

from mimo_engine.config.engine import EngineConfig, ServerConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Serve the OpenAI API over HTTP. MODEL is a directory or the name of a hub repository."""

    engine: EngineConfig
    server: ServerConfig = field(default_factory=ServerConfig)


def run(command: Command) -> int:
    return 0
