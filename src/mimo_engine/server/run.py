"""From two configurations to a running server: engine first, port second, signals in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import Generator
from pathlib import Path

import uvicorn
from fastapi import FastAPI

from mimo_engine.chat.template import ChatTemplate
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.generation import read_sampling_defaults
from mimo_engine.config.server import ServerConfig
from mimo_engine.engine.client import AsyncEngineClient
from mimo_engine.engine.features import raise_file_limit
from mimo_engine.errors import ConfigError, MimoError
from mimo_engine.multimodal.processor import MediaProcessor
from mimo_engine.server.app import create_app
from mimo_engine.server.security import is_loopback, read_api_keys

__all__ = ["bound_socket", "run_server"]

GRACE_S = 30
"""How long requests may go on after the first signal to stop; a second Ctrl-C ends them."""
KEEP_ALIVE_S = 75
"""How long a connection may be idle. Longer than in any client's pool or at a proxy (5 to 60 s
there): who closes first must be they, or a request meets a connection that is being closed."""
MAX_HEADER_BYTES = 64 * 1024
"""Of a request's first line and headers together; more is a 400."""

logger = logging.getLogger(__name__)


def run_server(engine: EngineConfig, server: ServerConfig, build: str) -> int:
    """Serve until a signal. Returns the exit code: 1 when the engine could not start, and then
    no port was opened. `build` ("module:function") makes the engine, in its own process."""
    raise_file_limit()
    try:
        return asyncio.run(_serve(engine, server, build))
    except (KeyboardInterrupt, asyncio.CancelledError):
        logger.error("stopped before the engine was ready")
        return 130


async def _serve(engine: EngineConfig, server: ServerConfig, build: str) -> int:
    task = asyncio.current_task()
    assert task is not None
    # While the engine starts SIGTERM does what Ctrl-C does: whatever was started is ended.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    client = AsyncEngineClient(engine, build)
    try:
        model_dir = Path(engine.model)
        tokenizer = Tokenizer.from_dir(model_dir)
        template = _chat_template(tokenizer, server)
        defaults = read_sampling_defaults(model_dir)
        _check_security(server)
        # Bound now, so that a taken port is not found out after minutes of loading; nobody can
        # connect before uvicorn listens.
        with bound_socket(server.host, server.port) as sock:
            await client.start()
            media = MediaProcessor.of_engine(engine, client.info, tokenizer, server.media)
            model_name = server.served_model_name or model_dir.resolve().name
            app = create_app(
                client,
                tokenizer,
                template,
                server,
                model_name=model_name,
                defaults=defaults,
                media=media,
            )
            try:
                await _Server(app).serve(sockets=[sock])
            finally:
                await media.close()
    except MimoError as error:
        logger.error("%s", error)
        return 1
    finally:
        await client.close()
    return 0


class _Server(uvicorn.Server):
    """uvicorn with signals that only stop it: its own way raises them anew when it has stopped,
    which would end this process before the engine is closed."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                server_header=False,
                # The one of uvicorn's two that bounds headers, whichever are installed.
                http="h11",
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                timeout_graceful_shutdown=GRACE_S,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.handle_exit, number, None)
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for sock in sockets or ():
            host, port = sock.getsockname()[:2]
            logger.info("serving on http://%s:%d/v1", f"[{host}]" if ":" in host else host, port)


def _check_security(server: ServerConfig) -> None:
    """ConfigError, early: keys that cannot be read. A server open to a network is worth a line."""
    if not read_api_keys(server.security) and not is_loopback(server.host):
        logger.warning(
            "listening on %s without --api-key: whoever reaches this port can use the model",
            server.host,
        )


def _chat_template(tokenizer: Tokenizer, server: ServerConfig) -> ChatTemplate | None:
    source = tokenizer.chat_template
    if server.chat_template is not None:
        try:
            source = Path(server.chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--chat-template cannot be read: {error}") from error
    if source is None:
        return None
    return ChatTemplate(source, special_tokens=tokenizer.special_tokens)


def bound_socket(host: str, port: int) -> socket.socket:
    """One to listen on; port 0 for any that is free. ConfigError: it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # By the protocol asyncio knows that its connections may be told not to wait (TCP_NODELAY): else
    # the second write of an answer waits for the client's delayed acknowledgement, 40 ms.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise ConfigError(
            f"cannot listen on {host}:{port} ({error}); choose another --port or --host"
        ) from error
    return sock
