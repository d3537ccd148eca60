"""When what is learned, and how fast: functions of how much of the training is over, 0 ... 1.

    0 ... AUDIO_UNTIL       the audio tokenizer learns with everything else, then it is fitted
    DRAFTS_FROM ... 1       the draft layers learn, on a backbone that goes on
    DECAY_FROM ... 1        learning rates fall to zero, so that a training ends settled

A training may be cut into runs: what is over is counted over all of them.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

__all__ = ["AUDIO_UNTIL", "DECAY_FROM", "DRAFTS_FROM", "Budget", "Clock", "Rates", "rates"]

AUDIO_UNTIL = 0.25
DRAFTS_FROM = 0.6
DECAY_FROM = 0.5
_WARM_UP = 0.01
_TOKENIZER_DECAY_FROM = 0.15
_DRAFT_WARM_UP = 0.02
_DRAFT_DECAY_FROM = 0.75


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Shares of the peak learning rate."""

    backbone: float
    tokenizer: float
    drafts: float


def rates(progress: float) -> Rates:
    """What holds at `progress`, 0 ... 1 of the training."""
    warm = min(1.0, (progress + _WARM_UP / 10) / _WARM_UP)
    return Rates(
        backbone=warm * _falling(progress, DECAY_FROM, 1.0),
        tokenizer=warm * _falling(progress, _TOKENIZER_DECAY_FROM, AUDIO_UNTIL),
        drafts=_drafts(progress),
    )


def _drafts(progress: float) -> float:
    if progress < DRAFTS_FROM:
        return 0.0
    warm = min(1.0, (progress - DRAFTS_FROM + _DRAFT_WARM_UP / 10) / _DRAFT_WARM_UP)
    return warm * _falling(progress, _DRAFT_DECAY_FROM, 1.0)


def _falling(progress: float, start: float, end: float) -> float:
    return min(1.0, max(0.0, (end - progress) / (end - start)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """How long a run and the whole training take: in seconds, or in steps, so that a test's result
    does not depend on the machine."""

    run: float
    total: float
    in_steps: bool = False


@dataclass(slots=True)
class Clock:
    """Counts what is spent, from what earlier runs have spent."""

    budget: Budget
    spent_before: float = 0.0
    _spent: float = 0.0
    _started: float = field(default_factory=time.monotonic)

    def tick(self) -> None:
        """A step is over."""
        if self.budget.in_steps:
            self._spent += 1
        else:
            self._spent = time.monotonic() - self._started

    @property
    def spent(self) -> float:
        """By this run."""
        return self._spent

    @property
    def spent_in_all(self) -> float:
        return self.spent_before + self._spent

    @property
    def progress(self) -> float:
        return min(1.0, self.spent_in_all / self.budget.total)

    @property
    def is_over(self) -> bool:
        return self._spent >= self.budget.run or self.spent_in_all >= self.budget.total
