"""The HTTP application, made of what it is given: no module state, so two can live side by side."""

from __future__ import annotations

import time

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from mimo_engine.chat.template import ChatTemplate
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.generation import SamplingDefaults
from mimo_engine.config.security import SecurityConfig
from mimo_engine.config.server import ServerConfig
from mimo_engine.engine.client import AsyncEngineClient
from mimo_engine.multimodal.processor import MediaProcessor
from mimo_engine.server.admin import admin_router
from mimo_engine.server.anthropic.routes import messages_router
from mimo_engine.server.body_limits import BodyLimits
from mimo_engine.server.chat import chat_router
from mimo_engine.server.completions import completions_router
from mimo_engine.server.errors import add_error_handlers
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.grammars import GrammarCheck
from mimo_engine.server.metrics import Metrics
from mimo_engine.server.openapi import Api
from mimo_engine.server.playground import playground_router
from mimo_engine.server.request_log import Failures, RequestLog
from mimo_engine.server.responses.routes import responses_router
from mimo_engine.server.security import BrowserGuard, KeyCheck, is_loopback, read_api_keys
from mimo_engine.server.transcriptions import transcriptions_router

__all__ = ["create_app"]


def create_app(
    client: AsyncEngineClient,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    config: ServerConfig,
    *,
    model_name: str,
    defaults: SamplingDefaults,
    media: MediaProcessor,
) -> FastAPI:
    """The routes over a started `client`, which the caller closes after the server has ended, and
    `media` too.

    `template` None: a base model, without chat. `defaults`: of chat requests. ConfigError: a file
    of keys that cannot be read.
    """
    context = ServerContext(
        client=client,
        tokenizer=tokenizer,
        template=template,
        config=config,
        model_name=model_name,
        defaults=defaults,
        media=media,
        check_grammar=GrammarCheck(tokenizer),
        metrics=Metrics(client),
        created=int(time.time()),
    )
    layers = _layers(config.security, config.host)
    app = Api(title="mimo-engine", docs_url=None, redoc_url=None, middleware=layers)
    add_error_handlers(app)
    app.include_router(completions_router(context))
    app.include_router(chat_router(context))
    app.include_router(responses_router(context))
    app.include_router(messages_router(context))
    app.include_router(transcriptions_router(context))
    app.include_router(admin_router(context))
    app.include_router(playground_router())
    return app


def _layers(security: SecurityConfig, host: str) -> list[Middleware]:
    """What stands between a client and the routes, the first being what it meets first."""
    keys = read_api_keys(security)
    layers: list[Middleware] = []
    if security.log_requests:
        layers.append(Middleware(RequestLog))
    if not keys:
        hosts = security.allowed_host if is_loopback(host) else None
        layers.append(Middleware(BrowserGuard, origins=security.cors_origin, hosts=hosts))
    if security.cors_origin:
        # No cookies: a key is what lets a request in.
        cors = Middleware(
            CORSMiddleware,
            allow_origins=security.cors_origin,
            allow_methods=("DELETE", "GET", "POST"),
            # The clients of OpenAI and Anthropic send a dozen of their own.
            allow_headers=("*",),
            max_age=600,
        )
        layers.append(cors)
    layers.append(Middleware(Failures))
    if keys:
        layers.append(Middleware(KeyCheck, keys))
    layers.append(Middleware(BodyLimits, int(security.max_body_mib * 2**20)))
    return layers
