"""The HTTP application, made of what it is given: no module state, so two can live side by side."""

from __future__ import annotations

import time

from fastapi import FastAPI

from mimo_engine.chat.template import ChatTemplate
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import ThinkingConfig
from mimo_engine.config.generation import SamplingDefaults
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.engine.client import AsyncEngineClient
from mimo_engine.multimodal.processor import MediaProcessor
from mimo_engine.server.admin import admin_router
from mimo_engine.server.chat import chat_router
from mimo_engine.server.completions import completions_router
from mimo_engine.server.errors import add_error_handlers
from mimo_engine.server.generation import ServerContext
from mimo_engine.server.grammars import GrammarCheck
from mimo_engine.server.metrics import Metrics

__all__ = ["create_app"]


def create_app(
    client: AsyncEngineClient,
    tokenizer: Tokenizer,
    template: ChatTemplate | None,
    *,
    model_name: str,
    defaults: SamplingDefaults,
    thinking: ThinkingConfig | None = None,
    media: MediaProcessor | None = None,
) -> FastAPI:
    """The routes over a started `client`, which the caller closes after the server has ended.

    `template` None: a base model, without chat. `defaults` and `thinking`: of chat requests.
    `media`: which the caller closes too; None: text alone.
    """
    context = ServerContext(
        client=client,
        tokenizer=tokenizer,
        template=template,
        model_name=model_name,
        defaults=defaults,
        thinking=thinking or ThinkingConfig(),
        media=media or MediaProcessor(None, tokenizer, MediaLimits()),
        check_grammar=GrammarCheck(tokenizer),
        metrics=Metrics(client),
        created=int(time.time()),
    )
    app = FastAPI(title="mimo-engine", docs_url=None, redoc_url=None)
    add_error_handlers(app)
    app.include_router(completions_router(context))
    app.include_router(chat_router(context))
    app.include_router(admin_router(context))
    return app
