"""One assistant turn: from a request for chat to its answers, the same for every API that has chat.

chat.py and the other APIs of conversations only translate: their requests into a `ChatRequest`, and
what `Turn.updates` yields into their own chunks.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.types import Receive

from mimo_engine.chat.events import ToolCallEnd
from mimo_engine.chat.stream_parser import StreamParser, Thinking, thinking_after
from mimo_engine.chat.tools import ToolSchema, tool_schemas
from mimo_engine.config.sampling import GrammarSpec, SamplingParams, ThinkingSpec
from mimo_engine.errors import ContextLengthError, RequestError
from mimo_engine.messages import TokenLogprobs
from mimo_engine.multimodal.processor import MultimodalProcessorOutput
from mimo_engine.server.answer import Answer, ThoughtCounter
from mimo_engine.server.chat_schemas import ChatRequest, Conversation
from mimo_engine.server.generation import LOOPED, Generation, ServerContext, Update
from mimo_engine.server.image_history import with_newest_images
from mimo_engine.server.objects import Delta, Usage
from mimo_engine.server.stream import while_connected

__all__ = ["Turn", "TurnUpdate", "conversation_prompt"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TurnUpdate:
    """What one engine output added to one choice."""

    index: int
    is_first: bool
    deltas: list[Delta | ToolCallEnd]
    """Empty where the text is held back: it may become a tag. A call's end has no delta."""
    logprobs: list[TokenLogprobs]
    has_ended: bool


class Turn:
    """The answers to one conversation while they grow: n choices, each parsed as it comes."""

    @classmethod
    async def start(
        cls,
        body: ChatRequest,
        context: ServerContext,
        receive: Receive,
        *,
        cuts_at_context: bool = False,
    ) -> Turn:
        """Check and render `body`, fetch its media, compile its grammar. Nothing is generated yet.

        `cuts_at_context`: where max_tokens is more than the context has room for, the answer may
        have that room, and it is no error. RequestError and its kin: what cannot be served, before
        anything is started. ClientDisconnect: the client left (`receive` is its request's).
        """
        context.check_model(body.model)
        # Media may take a while: nothing is fetched or decoded for a client that has gone.
        prompt = await while_connected(receive, conversation_prompt(body, context))
        task = await _prepare(body, context, prompt)
        if cuts_at_context:
            room = _room(context, len(prompt.token_ids))
            max_tokens = min(room, task.params.max_tokens or room)
            task = replace(task, params=replace(task.params, max_tokens=max_tokens))
        if task.params.grammar is not None:
            await context.check_grammar(task.grammar_field, task.params.grammar)
        return cls(body, task, context, prompt)

    def __init__(
        self,
        body: ChatRequest,
        task: _Task,
        context: ServerContext,
        prompt: MultimodalProcessorOutput,
    ) -> None:
        # The prompt's features are the generation's to hand over: they are not kept alive here.
        self._generation = Generation(
            context, [prompt.token_ids], task.params, media=prompt.media, features=prompt.features
        )
        self._media_tokens = _media_tokens(prompt)
        self.outputs = self._generation.outputs
        """By index: token ids, logprobs, the reason of the end."""
        self.answers = [_answer(body, task, context) for _ in self.outputs]
        """By index; complete when `updates` has ended."""
        self._thoughts = [
            ThoughtCounter(task.thinking, context.tokenizer, task.params.thinking)
            for _ in self.outputs
        ]
        self._metrics = context.metrics

    async def updates(self) -> AsyncGenerator[TurnUpdate]:
        """Run all choices. Closing the generator aborts those that have not ended."""
        async with aclosing(self._generation.updates()) as updates:
            async for update in updates:
                yield self._take(update)

    def ending(self, index: int) -> dict[str, Any]:
        """finish_reason and matched_stop of a choice that has ended."""
        output = self.outputs[index]
        if output.finish_reason == "stop" and self.answers[index].calls_are_whole:
            return {"finish_reason": "tool_calls", "matched_stop": None}
        return {"finish_reason": output.finish_reason, "matched_stop": output.stop_reason}

    def usage(self) -> Usage:
        """So far, of all choices."""
        reasoning_tokens = sum(thought.num_tokens for thought in self._thoughts)
        return self._generation.usage(reasoning_tokens, self._media_tokens)

    def _take(self, update: Update) -> TurnUpdate:
        i = update.index
        answer, output = self.answers[i], self.outputs[i]
        deltas = answer.take(update.pieces, is_last=output.finish_reason is not None)
        if answer.is_over:
            self._metrics.tool_call_limits.inc()
            # What ended the output within the same step did not end the answer.
            if output.finish_reason in (None, "stop", "length", LOOPED):
                self._generation.end(i, num_dropped=answer.num_left)
        num_tokens = len(update.token_ids) - answer.num_left
        if self._thoughts[i].add(update.token_ids[:num_tokens]):
            self._metrics.thoughts_closed.inc()
        return TurnUpdate(
            index=i,
            is_first=update.is_first,
            deltas=deltas,
            logprobs=update.logprobs[:num_tokens],
            has_ended=output.finish_reason is not None,
        )


def _room(context: ServerContext, prompt_len: int) -> int:
    """Tokens that an answer may have; at least one, or ContextLengthError."""
    max_model_len = context.client.info.max_model_len
    if prompt_len >= max_model_len:
        # In the words by which agents know that they must shorten the conversation.
        raise ContextLengthError(
            f"prompt is too long: {prompt_len} tokens > {max_model_len - 1} maximum", param="prompt"
        )
    return max_model_len - prompt_len


def _answer(body: ChatRequest, task: _Task, context: ServerContext) -> Answer:
    parser = StreamParser(
        thinking=task.parsed_thinking,
        tools=task.tools,
        tool_call_in_thinking=context.config.thinking.tool_call_in_thinking,
    )
    return Answer(
        parser,
        streams_reasoning=body.stream_reasoning is not False,
        max_calls=_max_calls(body, context),
    )


def _max_calls(body: ChatRequest, context: ServerContext) -> int | None:
    """The smallest of what the request and the server allow; None: any number."""
    limits = (
        body.max_tool_calls,
        context.config.guards.max_tool_calls,
        1 if body.parallel_tool_calls is False else None,
    )
    return min((limit for limit in limits if limit is not None), default=None)


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

    messages, num_removed = with_newest_images(body.messages, context.config.guards.keep_images)
    context.metrics.images_removed.inc(num_removed)
    return await context.media.process_mm_data_async(messages, render=render)


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


async def _prepare(
    body: ChatRequest, context: ServerContext, prompt: MultimodalProcessorOutput
) -> _Task:
    thinking = thinking_after(prompt.text)
    shown = body.shown_tools()
    field, grammar = body.format() or ("tool_choice", None)
    if grammar is not None and shown:
        logger.warning("%s wins over tools with tool_choice auto: there will be no call", field)
    # An answer in a demanded form is content from end to end, whatever it quotes.
    tools = {} if grammar is not None else tool_schemas(shown)
    is_plain = body.separate_reasoning is False or (grammar is not None and thinking == "off")
    if body.must_call:
        is_parallel = _max_calls(body, context) != 1
        grammar = await context.check_grammar.of_tools(shown, parallel=is_parallel)
    params = replace(
        body.sampling_params(context.defaults),
        grammar=grammar,
        thinking=_thinking_spec(thinking, body, context, grammar, may_call=bool(tools)),
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
    thinking: Thinking,
    body: ChatRequest,
    context: ServerContext,
    grammar: GrammarSpec | None,
    *,
    may_call: bool,
) -> ThinkingSpec | None:
    """None where nothing has to be seen to while the model thinks."""
    tokenizer, config = context.tokenizer, context.config.thinking
    start_id, end_id = tokenizer.find_id("<think>"), tokenizer.find_id("</think>")
    budget = body.thinking_token_budget or config.thinking_token_budget
    if budget is not None:
        # No thought is longer than that; a request's number may be of any size.
        budget = min(budget, context.client.info.max_model_len)
    is_strict = config.strict_thinking or grammar is not None
    if thinking == "off" or start_id is None or end_id is None or not (budget or is_strict):
        return None
    call_id, end_call_id = map(tokenizer.find_id, ("<tool_call>", "</tool_call>"))
    tags = (tag for tag in (call_id, end_call_id) if tag is not None)
    ends = (*tags, *tokenizer.stop_token_ids())
    # To the parser too the thought is over there (stream_parser.py).
    is_rescued = may_call and config.tool_call_in_thinking == "rescue"
    return ThinkingSpec(
        start_id=start_id,
        end_id=end_id,
        budget=budget,
        banned_ids=ends if is_strict else (),
        is_open=thinking == "open",
        call_id=call_id if is_rescued else None,
    )
