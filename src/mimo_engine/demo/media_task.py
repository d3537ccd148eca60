"""What the tasks with pictures and sound have in common: a question, its parts, a short answer.

A task is data: its words, and a function that draws one picture, film or clip with its answer.
The answer is a few words, said exactly; half of the examples leave thinking on and think nothing.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mimo_engine.demo.task import Example, Message, Split
from mimo_engine.demo.turns import assistant, content_of

__all__ = ["Drawn", "MediaTask", "noise_generator"]

_TEXT_FIRST = 0.25
"""The part of the examples whose question stands before the media. It is the harder order for a
reader that looks once, and the rarer one in requests."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """One example's media, and what is true of them."""

    part: Mapping[str, Any]
    """As `Example.messages` wants it."""
    answer: str
    words: Mapping[str, str] = field(default_factory=dict)
    """What the question says of this example: its {placeholders}."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaTask:
    """A `Task` about one image, video or clip."""

    name: str
    modality: Literal["image", "video", "audio"]
    definition: str
    baseline: float
    questions: Sequence[str]
    """Phrasings, each with all placeholders of `Drawn.words`."""
    draw: Callable[[random.Random, Split], Drawn]

    def make(self, rng: random.Random, split: Split) -> Example:
        drawn = self.draw(rng, split)
        question = {"type": "text", "text": rng.choice(self.questions).format(**drawn.words)}
        content = [drawn.part, question]
        if rng.random() < _TEXT_FIRST:
            content.reverse()
        return Example(
            messages=({"role": "user", "content": content},),
            answer=assistant(drawn.answer),
            thinks=rng.random() < 0.5,
            target=drawn.answer,
        )

    def is_right(self, example: Example, answer: Message) -> bool:
        """The answer and nothing else, but for letter case, outer space and a full stop."""
        return content_of(answer).removesuffix(".").casefold() == example.target


def noise_generator(rng: random.Random, split: Split) -> np.random.Generator:
    """For noise and jitter by the thousand: its seeds in the two splits are different numbers."""
    return np.random.Generator(np.random.PCG64(2 * rng.getrandbits(63) + (split == "test")))
