"""OpenAI's Responses API: turns (server/turn.py) as items and named events, kept by their ids."""

from mimo_engine.server.responses.routes import responses_router

__all__ = ["responses_router"]
