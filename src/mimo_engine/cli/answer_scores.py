"""How likely a model finds given answers about pictures: log-probabilities of their tokens alone.

A question with its answer is one conversation, rendered by the checkpoint's template with thinking
off. One engine scores for one variant of the towers: its encoder cache knows pictures by their
features, so what a tower made of them under other settings would be taken for its own.
"""

from __future__ import annotations

import gc
import multiprocessing
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimo_engine.chat.template import ChatTemplate
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import EngineConfig, SchedulerConfig, SpeculativeConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import CheckpointError, ConfigError, RequestError
from mimo_engine.llm import LLM, Output

__all__ = ["BATCH_QUESTIONS", "AnswerFinder", "Question", "Scorer", "open_scorer"]

BATCH_QUESTIONS = 8
"""Scored side by side: the features of so many pictures are in memory at once."""

SCORING = SchedulerConfig(max_num_seqs=BATCH_QUESTIONS, max_num_batched_tokens=1024)
"""Every row of a prompt has logits here, unlike where text is generated: few rows a step."""

_PARAMS = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
_THINKING_OFF = {"enable_thinking": False}
_RANK_END_S = 60.0


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Question:
    """One picture, a question about it, and an answer to score."""

    image: Path | np.ndarray
    text: str
    answer: str


Scorer = Callable[[Sequence[Question]], list[list[float]]]
"""Log-probabilities of each answer's tokens, in order."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _AnswerPlace:
    token_ids: list[int]
    num_after: int
    """Tokens of the prompt behind the answer."""


class AnswerFinder:
    """Finds the tokens of an answer by rendering with and without it.

    Text alone will do: what stands behind a picture is tokenised as if there were none. Raises
    ConfigError for a checkpoint without a chat template.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        if tokenizer.chat_template is None:
            raise ConfigError(
                "this checkpoint has no chat template, so it cannot be asked about pictures: use "
                "the instruction-tuned one"
            )
        self._tokenizer = tokenizer
        self._template = ChatTemplate(
            tokenizer.chat_template, special_tokens=tokenizer.special_tokens
        )

    def find(self, question: Question) -> _AnswerPlace:
        """RequestError: the prompt does not show the answer as it is."""
        messages = _conversation(question, _text(question))
        up_to_answer = self._render(messages, continue_final_message=True)
        whole = self._tokenizer.encode(self._render(messages))
        with_answer = self._tokenizer.encode(up_to_answer)
        without = self._tokenizer.encode(up_to_answer.removesuffix(question.answer))
        begin, end = len(without), len(with_answer)
        if not begin < end or whole[:end] != with_answer or with_answer[:begin] != without:
            raise _not_shown(question)
        return _AnswerPlace(token_ids=with_answer[begin:], num_after=len(whole) - end)

    def _render(
        self, messages: Sequence[Mapping[str, Any]], *, continue_final_message: bool = False
    ) -> str:
        return self._template.render(
            messages,
            continue_final_message=continue_final_message,
            template_kwargs=_THINKING_OFF,
        )


def _not_shown(question: Question) -> RequestError:
    return RequestError(
        f"the answer {question.answer!r} has no tokens of its own in the prompt: change its first "
        "or last characters"
    )


@contextmanager
def open_scorer(config: EngineConfig) -> Iterator[Scorer]:
    """An engine of `config` as a Scorer. At most one at a time, and none before the one before it
    has been let go of: together they would not fit."""
    # What the engine before held is free once nothing refers to it; torch would keep it for itself.
    gc.collect()
    torch.cuda.empty_cache()
    others = set(multiprocessing.active_children())
    without_drafts = SpeculativeConfig(speculative="off")
    llm = LLM.from_config(replace(config, speculative=without_drafts))
    try:
        yield partial(_score_all, llm, AnswerFinder(llm.tokenizer))
    finally:
        llm.close()
        # Ranks end when their pipe has closed, and hold their GPUs until then.
        for rank in set(multiprocessing.active_children()) - others:
            rank.join(_RANK_END_S)


def _score_all(llm: LLM, finder: AnswerFinder, questions: Sequence[Question]) -> list[list[float]]:
    outputs = llm.chat(
        [
            _conversation(question, {"type": "image", "image": question.image}, _text(question))
            for question in questions
        ],
        _PARAMS,
        chat_template_kwargs=_THINKING_OFF,
    )
    return [_score(finder, *pair) for pair in zip(questions, outputs, strict=True)]


def _score(finder: AnswerFinder, question: Question, output: Output) -> list[float]:
    if output.error is not None or output.prompt_logprobs is None:
        raise CheckpointError(f"the model cannot score {question.answer!r}: {output.error}")
    place = finder.find(question)
    end = len(output.prompt_token_ids) - place.num_after
    span = slice(end - len(place.token_ids), end)
    if output.prompt_token_ids[span] != place.token_ids:
        raise _not_shown(question)
    entries = output.prompt_logprobs[span]
    return [entry.logprob for entry in entries if entry is not None]


def _conversation(question: Question, *asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """asked: the user's parts. An answer that holds </think> would be taken for a thought, if its
    thought were not given."""
    answer = {"role": "assistant", "reasoning_content": "", "content": question.answer}
    return [{"role": "user", "content": list(asked)}, answer]


def _text(question: Question) -> dict[str, Any]:
    return {"type": "text", "text": question.text}
