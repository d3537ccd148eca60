"""What a task of the demo model is: examples made by code, and how an answer is judged.

An example is a conversation as `LLM.chat` takes it, media as arrays among its parts, and the
assistant's turn that answers it. The same example trains the model (rendered by the checkpoint's
own template, media through the engine's own processor) and tests it (sent to the server, media as
files). What must hold: examples of the two splits are never equal, and where a definition names
what is held out (voices, words, fonts), nothing of it is in the training split.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

__all__ = ["Example", "Message", "Split", "Task", "task_name"]

Message = Mapping[str, Any]
Split = Literal["train", "test"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One conversation and its right answer."""

    messages: Sequence[Message]
    """Up to the last user or tool turn. Media parts hold arrays: {"type": "image", "image": uint8
    [H, W, 3]}, {"type": "audio", "audio": (float32 [n], 24000)}, {"type": "video", "video": (uint8
    [T, H, W, 3], fps)}, the last with {"audio": ...} beside it when its sound counts."""
    answer: Message
    """The assistant's turn: content, reasoning_content (empty: none), tool_calls."""
    tools: Sequence[Mapping[str, Any]] = field(default_factory=tuple)
    thinks: bool = True
    """Whether the prompt leaves thinking on; False: enable_thinking is false."""
    target: Any = None
    """What `is_right` needs besides the answer: a number, a word, arguments, a schema."""


class Task(Protocol):
    """A kind of example."""

    name: str
    modality: Literal["text", "image", "audio", "video"]
    definition: str
    """In words: number of digits, vocabulary, what is held out."""
    baseline: float
    """Accuracy of the best constant or random guess, 0 ... 1, and how it is had in `definition`."""

    def make(self, rng: random.Random, split: Split) -> Example:
        """A fresh example, a function of the generator's state alone."""
        ...

    def is_right(self, example: Example, answer: Message) -> bool:
        """Whether a model's turn (as the server's message: content, reasoning_content, tool_calls
        with JSON text as arguments) answers the example. Never raises on odd answers."""
        ...


def task_name(task: Task) -> str:
    """Such as image/colour: names are unique within a modality."""
    return f"{task.modality}/{task.name}"
