"""POST /v1/chat/completions: the checkpoint's template around the conversation, and its answer as
reasoning, content and tool calls."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any
from uuid import uuid4

from fastapi import APIRouter, Request, Response
from msgspec import UNSET

from mimo_engine.chat.stream_parser import StreamParser, Thinking, thinking_after
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.chat.tools import ToolSchema, tool_schemas
from mimo_engine.config.sampling import GrammarSpec, SamplingParams, ThinkingSpec
from mimo_engine.errors import RequestError
from mimo_engine.grammar.tool_grammar import tool_grammar
from mimo_engine.messages import TokenLogprobs
from mimo_engine.multimodal.processor import MultimodalProcessorOutput
from mimo_engine.server.answer import Answer, ThoughtCounter
from mimo_engine.server.chat_schemas import ChatRequest, Conversation
from mimo_engine.server.generation import Generation, ServerContext, Update
from mimo_engine.server.responses import (
    ChatChoice,
    ChatChunk,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    ChunkChoice,
    Delta,
    TopLogprob,
    Usage,
    finite,
)
from mimo_engine.server.stream import json_response, stream_events, while_connected

__all__ = ["chat_router", "conversation_prompt"]

logger = logging.getLogger(__name__)


def chat_router(context: ServerContext) -> APIRouter:
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def create(body: ChatRequest, request: Request) -> Response:
        context.check_model(body.model)
        # Media may take a while: nothing is fetched or decoded for a client that has gone.
        prompt = await while_connected(request.receive, conversation_prompt(body, context))
        task = _prepare(body, context, prompt)
        if task.params.grammar is not None:
            await context.check_grammar(task.grammar_field, task.params.grammar)
        generation = Generation(
            context, [prompt.token_ids], task.params, media=prompt.media, features=prompt.features
        )
        renderer = _Renderer(body, task, generation, context, _media_tokens(prompt))
        # Its features are the generation's to hand over, and are not to be kept alive here.
        del prompt
        if body.stream:
            return await stream_events(request, renderer.chunks())
        await while_connected(request.receive, renderer.run())
        return json_response(renderer.whole())

    return router


async def conversation_prompt(
    body: Conversation, context: ServerContext
) -> MultimodalProcessorOutput:
    """What the model reads. RequestError: no template, messages that it cannot render, or media
    that cannot be had."""
    template = context.template
    if template is None:
        raise RequestError(
            "this model has no chat template: use /v1/completions, or start the server with "
            "--chat-template",
            param="messages",
        )
    tools = [_without_nulls(tool) for tool in body.shown_tools()]

    def render(shown: Sequence[Mapping[str, Any]]) -> str:
        return template.render(
            shown,
            tools=tools,
            add_generation_prompt=body.add_generation_prompt is not False,
            continue_final_message=bool(body.continue_final_message),
            template_kwargs=body.template_kwargs(),
        )

    return await context.media.process_mm_data_async(body.messages, render=render)


def _without_nulls(tool: Mapping[str, Any]) -> dict[str, Any]:
    """A template shows `description: null`, which clients mean as no description, as a word."""
    function = {key: value for key, value in tool["function"].items() if value is not None}
    return {**tool, "function": function}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Task:
    """A request made ready."""

    params: SamplingParams
    thinking: Thinking
    """How the output begins. What counts is what the model reads, not what the request says."""
    parsed_thinking: Thinking
    """The same, or "plain" where the tags of thinking are text."""
    tools: Mapping[str, ToolSchema]
    """Those that the answer may call."""
    grammar_field: str
    """The field that asked for params.grammar."""


def _prepare(body: ChatRequest, context: ServerContext, prompt: MultimodalProcessorOutput) -> _Task:
    thinking = thinking_after(prompt.text)
    shown = body.shown_tools()
    field, grammar = body.format() or ("tool_choice", None)
    if grammar is not None and shown:
        logger.warning("%s wins over tools with tool_choice auto: there will be no call", field)
    # An answer in a demanded form is content from end to end, whatever it quotes.
    tools = {} if grammar is not None else tool_schemas(shown)
    is_plain = body.separate_reasoning is False or (grammar is not None and thinking == "off")
    if body.must_call:
        grammar = tool_grammar(shown, parallel=body.parallel_tool_calls is not False)
    params = replace(
        body.sampling_params(context.defaults),
        grammar=grammar,
        thinking=_thinking_spec(thinking, body, context, grammar),
    )
    return _Task(
        params=params,
        thinking=thinking,
        parsed_thinking="plain" if is_plain else thinking,
        tools=tools,
        grammar_field=field,
    )


def _media_tokens(prompt: MultimodalProcessorOutput) -> dict[str, int]:
    """By their names in the usage; of a request without media, none."""
    if not prompt.media:
        return {}
    return {
        "image_tokens": prompt.num_image_tokens,
        "video_tokens": prompt.num_video_tokens,
        "audio_tokens": prompt.num_audio_tokens,
    }


def _thinking_spec(
    thinking: Thinking, body: ChatRequest, context: ServerContext, grammar: GrammarSpec | None
) -> ThinkingSpec | None:
    """None where nothing has to be seen to while the model thinks."""
    tokenizer, config = context.tokenizer, context.thinking
    start_id, end_id = tokenizer.find_id("<think>"), tokenizer.find_id("</think>")
    budget = body.thinking_token_budget or config.thinking_token_budget
    is_strict = config.strict_thinking or grammar is not None
    if thinking == "off" or start_id is None or end_id is None or not (budget or is_strict):
        return None
    tags = (tokenizer.find_id(name) for name in ("<tool_call>", "</tool_call>"))
    ends = (*(tag for tag in tags if tag is not None), *tokenizer.stop_token_ids())
    return ThinkingSpec(
        start_id=start_id,
        end_id=end_id,
        budget=budget,
        banned_ids=ends if is_strict else (),
        is_open=thinking == "open",
    )


class _Renderer:
    """One generation as a whole response or as chunks."""

    def __init__(
        self,
        body: ChatRequest,
        task: _Task,
        generation: Generation,
        context: ServerContext,
        media_tokens: Mapping[str, int],
    ) -> None:
        self._body = body
        self._media_tokens = media_tokens
        self._generation = generation
        self._context = context
        self._id = f"chatcmpl-{uuid4().hex}"
        self._created = int(time.time())
        self._answers = [self._answer(task) for _ in generation.outputs]
        self._thoughts = [
            ThoughtCounter(task.thinking, context.tokenizer) for _ in generation.outputs
        ]

    def _answer(self, task: _Task) -> Answer:
        parser = StreamParser(
            thinking=task.parsed_thinking,
            tools=task.tools,
            tool_call_in_thinking=self._context.thinking.tool_call_in_thinking,
        )
        return Answer(
            parser,
            streams_reasoning=self._body.stream_reasoning is not False,
            one_call=self._body.parallel_tool_calls is False,
        )

    async def run(self) -> None:
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                self._take(update)

    def whole(self) -> ChatCompletion:
        choices = [
            ChatChoice(
                index=i,
                message=answer.message(),
                logprobs=self._logprobs(self._generation.outputs[i].logprobs or []),
                **self._ending(i),
            )
            for i, answer in enumerate(self._answers)
        ]
        return ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=choices,
            usage=self._usage(),
        )

    async def chunks(self) -> AsyncGenerator[ChatChunk]:
        """For each choice: its role, what it says, its end; then the usage, if asked for."""
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                i = update.index
                deltas = self._take(update)
                if update.is_first:
                    delta = Delta(role="assistant", content="")
                    yield self._chunk(ChunkChoice(index=i, delta=delta))
                # The log-probabilities of a step go with the first that it says, or alone.
                logprobs = self._logprobs(update.logprobs)
                for delta in deltas or ([Delta()] if update.logprobs else []):
                    yield self._chunk(ChunkChoice(index=i, delta=delta, logprobs=logprobs))
                    logprobs = None
                if self._generation.outputs[i].finish_reason is not None:
                    end = ChunkChoice(index=i, delta=Delta(), **self._ending(i))
                    yield self._chunk(end)
        if self._body.include_usage:
            yield self._chunk(None)

    def _take(self, update: Update) -> list[Delta]:
        i = update.index
        self._thoughts[i].add(update.token_ids)
        answer, output = self._answers[i], self._generation.outputs[i]
        deltas = answer.take(update.text, is_last=output.finish_reason is not None)
        if answer.is_over and output.finish_reason is None:
            self._generation.end(i)
        return deltas

    def _ending(self, index: int) -> dict[str, Any]:
        output = self._generation.outputs[index]
        if output.finish_reason == "stop" and self._answers[index].calls_are_whole:
            return {"finish_reason": "tool_calls", "matched_stop": None}
        return {"finish_reason": output.finish_reason, "matched_stop": output.stop_reason}

    def _chunk(self, choice: ChunkChoice | None) -> ChatChunk:
        """None: the chunk at the end, which has the usage alone."""
        has_usage = choice is None or self._body.usage_in_every_chunk
        absent = None if self._body.include_usage else UNSET
        return ChatChunk(
            id=self._id,
            created=self._created,
            model=self._context.model_name,
            choices=[] if choice is None else [choice],
            usage=self._usage() if has_usage else absent,
        )

    def _usage(self) -> Usage:
        reasoning_tokens = sum(thought.num_tokens for thought in self._thoughts)
        return self._generation.usage(reasoning_tokens, self._media_tokens)

    def _logprobs(self, entries: Sequence[TokenLogprobs]) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        tokenizer = self._context.tokenizer
        return ChatLogprobs([_chat_logprob(entry, tokenizer) for entry in entries])


def _chat_logprob(entry: TokenLogprobs, tokenizer: Tokenizer) -> ChatLogprob:
    own = _spelled(entry.token_id, entry.logprob, tokenizer)
    top = [_spelled(token_id, logprob, tokenizer) for token_id, logprob in entry.top]
    return ChatLogprob(own.token, own.bytes, own.logprob, top)


def _spelled(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    data = tokenizer.token_bytes(token_id)
    text = data.decode("utf-8", errors="replace")
    return TopLogprob(text, list(data), finite(logprob))
