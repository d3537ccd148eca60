"""`LLM`: generate from Python, in this process.

    llm = LLM("path/to/checkpoint")
    for output in llm.generate(["Hello"], SamplingParams(max_tokens=32)):
        print(output.text)

A thin client of `engine/core.py`: it turns text into ids, steps the engine until every request has
ended, and turns ids into text.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any, Literal

from tqdm import tqdm

from mimo_engine.chat.detokenize import OutputText
from mimo_engine.chat.template import ChatTemplate
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import (
    CacheConfig,
    EngineConfig,
    KernelChoice,
    ModelSettings,
    Mxfp4Activations,
    ParallelConfig,
    RandomWeights,
    SchedulerConfig,
    SpeculativeConfig,
)
from mimo_engine.config.media_settings import EncoderConfig, MediaFacts, MediaLimits
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.engine.core import EngineCore, build_engine
from mimo_engine.errors import QueueFullError, RequestError
from mimo_engine.grammar.library import GrammarCompiler
from mimo_engine.messages import MediaItem, NewRequest, TokenLogprobs
from mimo_engine.multimodal.processor import MediaProcessor, Render
from mimo_engine.multimodal.shared_arrays import SharedArrays
from mimo_engine.utils.hub import resolve_model

__all__ = ["LLM", "Output"]

Prompt = str | Sequence[int]
Conversation = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """One finished completion."""

    prompt_token_ids: list[int]
    index: int
    """Which of the n completions of its prompt."""
    token_ids: list[int]
    """A final stop token included."""
    text: str
    finish_reason: str
    """stop or length; error when the model's numbers broke for this request (see `error`)."""
    stop_reason: str | int | None
    """The stop string or stop token id that ended it."""
    logprobs: list[TokenLogprobs] | None
    prompt_logprobs: list[TokenLogprobs | None] | None
    num_cached_tokens: int
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Prompt:
    token_ids: list[int]
    media: list[MediaItem] = field(default_factory=list)
    features: list[SharedArrays] = field(default_factory=list)


@dataclass(slots=True)
class _Running:
    """A request while it runs."""

    place: int
    request: NewRequest
    features: list[SharedArrays]
    index: int
    text: OutputText


class LLM:
    """A loaded checkpoint. Arguments other than `model` are the parts of `EngineConfig`."""

    def __init__(
        self,
        model: str,
        *,
        dtype: Literal["auto", "float32", "bfloat16"] = "auto",
        device: str = "auto",
        kernels: KernelChoice = "auto",
        mxfp4_activations: Mxfp4Activations = "bf16",
        weights: Literal["checkpoint"] | RandomWeights = "checkpoint",
        settings: ModelSettings | None = None,
        cache: CacheConfig | None = None,
        scheduler: SchedulerConfig | None = None,
        media: MediaFacts | None = None,
        encoder: EncoderConfig | None = None,
        parallel: ParallelConfig | None = None,
        speculative: SpeculativeConfig | None = None,
        media_limits: MediaLimits | None = None,
    ) -> None:
        """Load `model`, a checkpoint directory or the name of a repository on the hub.

        media_limits: of images, video and audio in `chat`; None: as the server's, but with any file
        of this machine allowed. Raises ConfigError or CheckpointError.
        """
        self.config = EngineConfig(
            model=str(resolve_model(model)),
            dtype=dtype,
            device=device,
            kernels=kernels,
            mxfp4_activations=mxfp4_activations,
            weights=weights,
            settings=settings or ModelSettings(),
            cache=cache or CacheConfig(),
            scheduler=scheduler or SchedulerConfig(),
            media=media or MediaFacts(),
            encoder=encoder or EncoderConfig(),
            parallel=parallel or ParallelConfig(),
            speculative=speculative or SpeculativeConfig(),
        )
        self.tokenizer = Tokenizer.from_dir(self.config.model)
        self.core: EngineCore = build_engine(self.config)
        self._media_limits = media_limits or MediaLimits(media_root=("/",))
        self._request_ids = itertools.count()

    @classmethod
    def from_config(cls, config: EngineConfig) -> LLM:
        """As `LLM` with the parts of `config`."""
        return cls(**{part.name: getattr(config, part.name) for part in fields(config)})

    @cached_property
    def _grammars(self) -> GrammarCompiler:
        """To refuse a grammar before anything runs; the worker has its own."""
        return GrammarCompiler(
            self.tokenizer.to_json(),
            num_tokens=self.tokenizer.num_tokens,
            end_ids=self.tokenizer.stop_token_ids(),
        )

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        progress: bool = False,
    ) -> list[Output]:
        """Complete the prompts (texts or lists of token ids) and wait for all.

        params: one for all prompts or one each. Returns the outputs in the prompts' order, the n
        completions of a prompt side by side. Raises RequestError for a prompt or parameters that
        cannot be served; then nothing is left running.
        """
        ready = [_Prompt(self._encode(prompt)) for prompt in _as_prompts(prompts)]
        return self._generate(ready, params, progress)

    def _generate(
        self,
        prompts: Sequence[_Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        progress: bool,
    ) -> list[Output]:
        if params is None or isinstance(params, SamplingParams):
            params = [params or SamplingParams()] * len(prompts)
        if len(params) != len(prompts):
            raise RequestError(f"{len(prompts)} prompts but {len(params)} sampling parameters")
        for spec in dict.fromkeys(own.grammar for own in params):
            if spec is not None:
                self._grammars.check(spec)
        pending: deque[_Running] = deque()
        for prompt, own in zip(prompts, params, strict=True):
            for index in range(own.n):
                pending.append(self._prepare(len(pending), prompt, own, index))
        return self._run(pending, progress)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        progress: bool = False,
    ) -> list[Output]:
        """`generate` on one conversation, or on several, rendered by the checkpoint's template.

        Content may have parts with images, video and audio, as in the server's requests and also as
        bytes, PIL images and arrays (docs/multimodal.md). chat_template_kwargs are variables of the
        template (enable_thinking, ...).
        """
        if self.tokenizer.chat_template is None:
            raise RequestError("this checkpoint has no chat template: use generate")
        template = ChatTemplate(
            self.tokenizer.chat_template, special_tokens=self.tokenizer.special_tokens
        )

        def render(shown: Sequence[Mapping[str, Any]]) -> str:
            return template.render(shown, tools=tools, template_kwargs=chat_template_kwargs)

        conversations = _as_conversations(messages)
        # A thread of its own: the caller's may have an event loop already, as in a notebook.
        with ThreadPoolExecutor(1) as thread:
            prompts = thread.submit(asyncio.run, self._process(conversations, render)).result()
        return self._generate(prompts, params, progress)

    async def _process(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], render: Render
    ) -> list[_Prompt]:
        processor = MediaProcessor.of_engine(
            self.config, self.core.info(), self.tokenizer, self._media_limits
        )
        try:
            outputs = [
                await processor.process_mm_data_async(one, render=render) for one in conversations
            ]
        finally:
            await processor.close()
        return [_Prompt(out.token_ids, out.media, out.features) for out in outputs]

    def close(self) -> None:
        """End the engine's child processes, if it has any."""
        self.core.close()

    def _encode(self, prompt: Prompt) -> list[int]:
        return self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)

    def _prepare(self, place: int, prompt: _Prompt, params: SamplingParams, index: int) -> _Running:
        # Each of n completions draws its own numbers; a seed must give n different texts.
        seed = None if params.seed is None else params.seed + index
        own = replace(params, n=1, seed=seed)
        request_id = f"llm-{next(self._request_ids)}"
        request = NewRequest(
            request_id=request_id, prompt_token_ids=prompt.token_ids, params=own, media=prompt.media
        )
        return _Running(place, request, prompt.features, index, OutputText(self.tokenizer, own))

    def _run(self, pending: deque[_Running], progress: bool) -> list[Output]:
        outputs: list[Output | None] = [None] * len(pending)
        running: dict[str, _Running] = {}
        try:
            with tqdm(total=len(pending), desc="requests", disable=not progress) as bar:
                while pending or running:
                    self._admit(pending, running)
                    for step_output in self.core.step():
                        item = running.get(step_output.request_id)
                        if item is None:
                            continue
                        item.text.add(step_output)
                        if item.text.finish_reason is not None:
                            if step_output.finish_reason is None:
                                self.core.abort(step_output.request_id)
                            del running[step_output.request_id]
                            outputs[item.place] = _finished(item)
                            bar.update()
        finally:
            for request_id in running:
                self.core.abort(request_id)
            # The step that was begun before the last token was known.
            self.core.settle()
        return [output for output in outputs if output is not None]

    def _admit(self, pending: deque[_Running], running: dict[str, _Running]) -> None:
        """Hand over what the engine's queue takes."""
        while pending:
            try:
                self.core.add(pending[0].request, pending[0].features)
            except QueueFullError:
                return
            item = pending.popleft()
            item.features = []
            running[item.request.request_id] = item


def _as_prompts(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if prompts and all(isinstance(item, int) for item in prompts):
        return [prompts]  # type: ignore[list-item]
    return list(prompts)  # type: ignore[arg-type]


def _as_conversations(messages: Conversation | Sequence[Conversation]) -> list[Conversation]:
    if all(isinstance(item, Mapping) for item in messages):
        return [messages]  # type: ignore[list-item]
    return list(messages)  # type: ignore[arg-type]


def _finished(item: _Running) -> Output:
    text = item.text
    return Output(
        prompt_token_ids=item.request.prompt_token_ids,
        index=item.index,
        token_ids=text.token_ids,
        text=text.text,
        finish_reason=text.finish_reason or "abort",
        stop_reason=text.stop_reason,
        logprobs=text.logprobs,
        prompt_logprobs=text.prompt_logprobs,
        num_cached_tokens=text.num_cached_tokens,
        error=text.error,
    )
