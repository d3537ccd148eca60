"""A program that serves a checkpoint's texts over the fake engine: serve_fake.py DIR OPTIONS."""

import json
import sys
from pathlib import Path

from fake_engine import FakeCore

from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.server import ServerConfig
from mimo_engine.errors import CheckpointError
from mimo_engine.server.run import run_server
from mimo_engine.utils.logging import setup_logging


def build(config):
    options = json.loads((Path(config.model) / "fake.json").read_text())
    if "refuse" in options:
        raise CheckpointError(options["refuse"])
    return FakeCore(config=config, options=options)


if __name__ == "__main__":
    setup_logging()
    server = ServerConfig(**json.loads(sys.argv[2]))
    sys.exit(run_server(EngineConfig(model=sys.argv[1]), server, "serve_fake:build"))
