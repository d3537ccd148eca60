"""Grammars are made and compiled here before an engine sees them: a bad one is its sender's error,
early.

What must hold: no grammar delays another client's stream. Both kinds of work are bounded by limits
of their own (grammar/library.py, grammar/tool_grammar.py), happen off the event loop, and on few
threads, so that a flood of hostile grammars waits for itself alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import QueueFullError, RequestError
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.grammar.tool_grammar import tool_grammar

__all__ = ["GrammarCheck"]

T = TypeVar("T")

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
        try:
            await self._run(partial(self._compiler.check, spec))
        except RequestError as error:
            raise RequestError(f"{field}: {error}", param=field) from error

    async def of_tools(self, tools: Sequence[Mapping[str, Any]], *, parallel: bool) -> GrammarSpec:
        """What `tool_grammar` makes, for __call__ to compile. Its errors, or QueueFullError."""
        return await self._run(partial(tool_grammar, tools, parallel=parallel))

    async def _run(self, work: Callable[[], T]) -> T:
        future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        try:
            return await asyncio.wait_for(future, TIMEOUT_S)
        except TimeoutError:
            raise QueueFullError("too many grammars are being compiled; try again later") from None
