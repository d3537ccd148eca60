"""Grammars are compiled here before an engine sees them: a bad one is its sender's error, early.

What must hold: no grammar delays another client's stream. Compiling is bounded by limits of its
own (grammar/library.py), happens off the event loop, and on few threads, so that a flood of hostile
grammars waits for itself alone.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import QueueFullError, RequestError
from mimo_engine.grammar.library import GrammarCompiler

__all__ = ["GrammarCheck"]

NUM_THREADS = 2
TIMEOUT_S = 20.0
"""Many times what one grammar can take: only a queue of them is as slow."""


class GrammarCheck:
    def __init__(self, tokenizer: Tokenizer) -> None:
        self._compiler = GrammarCompiler(
            tokenizer.to_json(),
            num_tokens=tokenizer.num_tokens,
            end_ids=tokenizer.stop_token_ids(),
        )
        self._pool = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="grammar-check")

    async def __call__(self, field: str, spec: GrammarSpec) -> None:
        """RequestError about `field` when no output can be held to `spec`. QueueFullError: too
        many grammars at once."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._pool, self._compiler.check, spec)
        try:
            await asyncio.wait_for(work, TIMEOUT_S)
        except TimeoutError:
            raise QueueFullError("too many grammars are being compiled; try again later") from None
        except RequestError as error:
            raise RequestError(f"{field}: {error}", param=field) from error
