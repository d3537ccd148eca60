"""POST /v1/completions: prompts go to the model as they are, with no template and no parser."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from mimo_engine.chat.detokenize import OutputText
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.errors import RequestError
from mimo_engine.messages import TokenLogprobs
from mimo_engine.server.generation import Generation, ServerContext
from mimo_engine.server.objects import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprob,
    finite,
)
from mimo_engine.server.schemas import CompletionRequest
from mimo_engine.server.stream import json_response, stream_events, while_connected

__all__ = ["completions_router"]

MAX_PROMPT_TOKENS = 4_000_000
"""Of all prompts of one request."""


def completions_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/completions")
    async def create(body: CompletionRequest, request: Request) -> Response:
        context.check_model(body.model)
        prompts = await asyncio.to_thread(_token_ids, body, context)
        params = body.sampling_params()
        field, grammar = body.format() or ("", None)
        if grammar is not None:
            await context.check_grammar(field, grammar)
            params = replace(params, grammar=grammar)
        if body.max_tokens is None:
            # A default is not a demand: it yields where the context ends.
            room = context.client.info.max_model_len - max(map(len, prompts))
            params = replace(params, max_tokens=max(1, min(params.max_tokens or room, room)))
        generation = Generation(
            context, prompts, params, scores_prompt_only=body.scores_prompt_only
        )
        renderer = _Renderer(body, generation, context)
        if body.stream:
            return await stream_events(request, renderer.chunks())
        await while_connected(request.receive, generation.run())
        return json_response(renderer.whole())

    return router


def _token_ids(body: CompletionRequest, context: ServerContext) -> list[list[int]]:
    """RequestError: prompts that are too many, too long, or too long together."""
    max_tokens = context.client.info.max_model_len
    found: list[list[int]] = []
    num_tokens = 0
    for prompt in body.prompts():
        if isinstance(prompt, str):
            prompt = context.tokenizer.encode(
                prompt, add_special_tokens=True, max_tokens=max_tokens
            )
        found.append(prompt)
        num_tokens += len(prompt)
        if num_tokens > MAX_PROMPT_TOKENS:
            raise RequestError(
                f"the prompts have more than {MAX_PROMPT_TOKENS} tokens together: send them in "
                "several requests",
                param="prompt",
            )
    return found


class _Renderer:
    """One generation as a whole response or as chunks."""

    def __init__(
        self, body: CompletionRequest, generation: Generation, context: ServerContext
    ) -> None:
        self._body = body
        self._generation = generation
        self._context = context
        self._id = f"cmpl-{uuid4().hex}"
        self._created = int(time.time())
        self._logprobs = [_LogprobWriter(context.tokenizer, body) for _ in generation.outputs]

    def whole(self) -> Completion:
        outputs = self._generation.outputs
        choices = [
            self._choice(i, True, output.text, output.logprobs or [])
            for i, output in enumerate(outputs)
        ]
        return self._completion(choices, usage=True)

    async def chunks(self) -> AsyncGenerator[Completion]:
        """A chunk for each update that says anything, the last of a choice with its end."""
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                choice = self._choice(update.index, update.is_first, update.text, update.logprobs)
                if choice.text or choice.logprobs or choice.finish_reason:
                    yield self._completion([choice], usage=self._body.usage_in_every_chunk)
        if self._body.include_usage:
            yield self._completion([], usage=True)

    def _choice(
        self, index: int, is_first: bool, text: str, logprobs: Sequence[TokenLogprobs]
    ) -> CompletionChoice:
        output = self._generation.outputs[index]
        prompt = self._generation.prompts[index]
        writer = self._logprobs[index]
        if self._body.echo and is_first:
            # From the ids, so that text offsets count in what the model read.
            text = self._context.tokenizer.decode(prompt, skip_special_tokens=False) + text
            writer.add_prompt(prompt, output.prompt_logprobs or [])
        writer.add(logprobs)
        return CompletionChoice(
            index=index,
            text=text,
            logprobs=writer.take() if self._body.logprobs is not None else None,
            finish_reason=output.finish_reason,
            matched_stop=output.stop_reason,
            prompt_logprobs=UNSET
            if self._body.prompt_logprobs is None
            else _prompt_logprobs(output, self._body.prompt_logprobs, self._context.tokenizer),
        )

    def _completion(self, choices: list[CompletionChoice], *, usage: bool) -> Completion:
        absent = None if self._body.include_usage else UNSET
        return Completion(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=choices,
            usage=self._generation.usage() if usage else absent,
        )


class _LogprobWriter:
    """Log-probabilities of one choice in the API's four parallel lists, taken out in pieces."""

    def __init__(self, tokenizer: Tokenizer, body: CompletionRequest) -> None:
        self._tokenizer = tokenizer
        self._num_top = body.logprobs or 0
        self._skip_special = body.skip_special_tokens is not False
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0
        self._lists = _empty()

    def add_prompt(self, prompt: Sequence[int], logprobs: Sequence[TokenLogprobs | None]) -> None:
        for token_id, entry in zip(prompt, logprobs, strict=False):
            self._append(token_id, entry, shown=True)

    def add(self, logprobs: Sequence[TokenLogprobs]) -> None:
        for entry in logprobs:
            shown = not (self._skip_special and self._tokenizer.is_skipped(entry.token_id))
            self._append(entry.token_id, entry, shown=shown)

    def take(self) -> CompletionLogprobs | None:
        """What was added since the last call; None when that is nothing."""
        taken, self._lists = self._lists, _empty()
        return taken if taken.tokens else None

    def _append(self, token_id: int, entry: TokenLogprobs | None, *, shown: bool) -> None:
        lists = self._lists
        lists.text_offset.append(self._offset)
        lists.tokens.append(_token_text(self._tokenizer, token_id))
        if shown:
            self._offset += len(self._utf8.decode(self._tokenizer.token_bytes(token_id)))
        if entry is None:
            lists.token_logprobs.append(None)
            lists.top_logprobs.append(None)
            return
        lists.token_logprobs.append(finite(entry.logprob))
        pairs = [*entry.top[: self._num_top], (token_id, entry.logprob)]
        lists.top_logprobs.append(
            {_token_text(self._tokenizer, i): finite(value) for i, value in pairs}
        )


def _empty() -> CompletionLogprobs:
    return CompletionLogprobs(text_offset=[], tokens=[], token_logprobs=[], top_logprobs=[])


def _token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """The token as text; one that is no whole UTF-8 as OpenAI writes it, `bytes:\\xe2\\x82`."""
    data = tokenizer.token_bytes(token_id)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _prompt_logprobs(
    output: OutputText, num_top: int, tokenizer: Tokenizer
) -> list[dict[str, PromptLogprob] | None]:
    """vLLM's form: by token id, the prompt's own token and the likeliest ones."""
    return [
        None if entry is None else _by_id(entry, num_top, tokenizer)
        for entry in output.prompt_logprobs or []
    ]


def _by_id(entry: TokenLogprobs, num_top: int, tokenizer: Tokenizer) -> dict[str, PromptLogprob]:
    ranked = [(i, value, rank) for rank, (i, value) in enumerate(entry.top[:num_top], start=1)]
    return {
        str(i): PromptLogprob(
            logprob=finite(value), rank=rank, decoded_token=_token_text(tokenizer, i)
        )
        for i, value, rank in [*ranked, (entry.token_id, entry.logprob, entry.rank)]
    }
