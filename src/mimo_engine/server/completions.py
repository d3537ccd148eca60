"""POST /v1/completions: prompts go to the model as they are, with no template and no parser."""

from __future__ import annotations

import asyncio
import codecs
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from heapq import nlargest
from math import inf
from statistics import fmean
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from mimo_engine.chat.detokenize import OutputText
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.errors import RequestError
from mimo_engine.messages import TokenLogprobs
from mimo_engine.server.generation import Generation, ServerContext, Update, check_num_tokens
from mimo_engine.server.objects import (
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    PromptLogprob,
    finite,
)
from mimo_engine.server.schemas import CompletionRequest
from mimo_engine.server.stream import drained, json_response_of, stream_events, while_connected

__all__ = ["completions_router"]


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
        await while_connected(request.receive, drained(generation.updates()))
        return await json_response_of(renderer.whole)

    return router


def _token_ids(body: CompletionRequest, context: ServerContext) -> list[list[int]]:
    """RequestError: prompts that are too many, too long, or too long together."""
    max_tokens = context.client.info.max_model_len
    found: list[list[int]] = []
    num_tokens = 0
    for prompt in body.prompts():
        if isinstance(prompt, str):
            prompt = context.tokenizer.encode(
                prompt,
                add_special_tokens=body.add_special_tokens is not False,
                max_tokens=max_tokens,
            )
        if body.suffix:
            prompt = _around_gap(prompt, body.suffix, context)
        found.append(prompt)
        num_tokens += len(prompt)
        check_num_tokens(num_tokens * body.num_candidates)
    return found


_GAP_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
"""Before the text, before what comes after the gap, and before what fills it: in this order."""


def _around_gap(prompt: Sequence[int], suffix: str, context: ServerContext) -> list[int]:
    """The prompt that asks for what stands between a text and its suffix.

    RequestError: the tokenizer has no tokens for that.
    """
    tokenizer = context.tokenizer
    before, after, middle = (tokenizer.find_id(name) for name in _GAP_TOKENS)
    if before is None or after is None or middle is None:
        raise RequestError(
            f"this model's tokenizer lacks one of {', '.join(_GAP_TOKENS)}, without which no text "
            "can be filled in: leave suffix out",
            param="suffix",
        )
    ids = tokenizer.encode(suffix, max_tokens=context.client.info.max_model_len)
    return [before, *prompt, after, *ids, middle]


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
        chosen = [
            self._choice(
                Update(
                    index=i,
                    is_first=True,
                    pieces=[output.text],
                    token_ids=output.token_ids,
                    logprobs=output.logprobs or [],
                ),
                number=number,
            )
            for number, (i, output) in enumerate(self._chosen())
        ]
        return self._completion(chosen, usage=True)

    def _chosen(self) -> list[tuple[int, OutputText]]:
        """The outputs to be given, with their indices: of each prompt all, or the best."""
        outputs = list(enumerate(self._generation.outputs))
        if not self._body.is_ranked:
            return outputs
        num_candidates, n = self._body.num_candidates, self._body.n or 1
        groups = (outputs[i : i + num_candidates] for i in range(0, len(outputs), num_candidates))
        return [one for group in groups for one in nlargest(n, group, key=_score)]

    async def chunks(self) -> AsyncGenerator[Completion]:
        """A chunk for each update that says anything, the last of a choice with its end."""
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                if self._body.echo and update.is_first:
                    # With all of the prompt's log-probabilities.
                    choice = await asyncio.to_thread(self._choice, update, number=update.index)
                else:
                    choice = self._choice(update, number=update.index)
                if choice.text or choice.logprobs or choice.token_ids or choice.finish_reason:
                    yield self._completion([choice], usage=self._body.usage_in_every_chunk)
        if self._body.include_usage:
            yield self._completion([], usage=True)

    def _choice(self, update: Update, *, number: int) -> CompletionChoice:
        """`number`: the index that the client sees."""
        body, tokenizer = self._body, self._context.tokenizer
        output = self._generation.outputs[update.index]
        prompt = self._generation.prompts[update.index]
        writer = self._logprobs[update.index]
        text = update.text
        if body.echo and update.is_first:
            # From the ids, so that text offsets count in what the model read.
            text = tokenizer.decode(prompt, skip_special_tokens=False) + text
            writer.add_prompt(prompt, output.prompt_logprobs or [])
        writer.add(update.logprobs)
        return CompletionChoice(
            index=number,
            text=text,
            logprobs=writer.take() if body.logprobs is not None else None,
            finish_reason=output.finish_reason,
            matched_stop=output.stop_reason,
            prompt_logprobs=UNSET
            if body.prompt_logprobs is None
            else _prompt_logprobs(output, body.prompt_logprobs, tokenizer),
            token_ids=update.token_ids if body.return_token_ids else UNSET,
            prompt_token_ids=prompt if body.return_token_ids and update.is_first else UNSET,
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


def _score(candidate: tuple[int, OutputText]) -> float:
    """How likely the model finds it: the mean log-probability of its tokens."""
    _, output = candidate
    return fmean([entry.logprob for entry in output.logprobs or []] or [-inf])


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
