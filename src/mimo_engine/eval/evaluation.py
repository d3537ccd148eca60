"""What an evaluation is: items, each a question that can be put and graded by itself.

Items are made lazily (`pose`), because a question with media takes megabytes and a run has
thousands: what is in memory is what is in flight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mimo_engine.errors import ConfigError
from mimo_engine.eval.api import Reply, Request
from mimo_engine.eval.rows import Row, read_rows

__all__ = ["THINKING_TOKENS", "Evaluation", "Grade", "Item", "Metric", "Options", "Question"]

Metric = Literal["accuracy", "word error rate"]

THINKING_TOKENS = 4096
"""Room for a thought beside the answer: with less, what is measured is how often it is cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """What a person may choose about a task."""

    data: str | None = None
    """A file, a directory, or the name of a dataset on the hub. None: the task makes its own."""
    files: str | None = None
    """Pattern of the files of a directory or dataset. None: those of the usual split."""
    limit: int | None = None
    """Items at most; of the demo's sets, of each. None: all, or the sets' usual number."""
    max_tokens: int | None = None
    """None: as the task has it."""
    thinks: bool = False

    def rows(self, *, hub_files: str, columns: Sequence[str]) -> list[Row]:
        """The data of a task that reads some, as `read_rows` has them."""
        assert self.data is not None
        return read_rows(self.data, hub_files=hub_files, files=self.files, columns=columns)

    def tokens_for(self, answer_tokens: int) -> int:
        """max_tokens of a task whose answers have room in `answer_tokens`."""
        if self.max_tokens is not None:
            return self.max_tokens
        return answer_tokens + (THINKING_TOKENS if self.thinks else 0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Grade:
    """What an answer is worth."""

    count: int
    """Accuracy: 1 when right, else 0. Word error rate: words that are wrong."""
    answer: Any = None
    """What was read out of the reply, for the record."""
    note: str = ""
    """How it was read or what is wrong, in a word or two: these are counted."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """An item when its turn has come."""

    request: Request
    expected: Any
    """The right answer, for the record."""
    grade: Callable[[Reply], Grade]
    """Never raises, whatever the model wrote."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One measurement."""

    id: str
    group: str
    """A line of the table: a subject, a set of the demo."""
    pose: Callable[[], Question]
    """Raises MimoError for media that cannot be read."""
    total: int = 1
    """Of which `Grade.count` counts: 1, or the words of the reference."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A task with its data."""

    metric: Metric
    items: Sequence[Item]
    """One or more."""
    settings: Mapping[str, Any]
    """What decides the score besides model and data, for the record."""
    baselines: Mapping[str, float] = field(default_factory=dict)
    """Of a group: what a guess that looks at nothing scores."""
    definitions: Mapping[str, str] = field(default_factory=dict)
    """Of a group, in words."""

    def __post_init__(self) -> None:
        if not self.items:
            raise ConfigError("there is no item to be asked: give more data, or a higher --limit")
