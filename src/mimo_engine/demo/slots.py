"""Typed values that a sentence states and JSON repeats: arguments of tools, properties of JSON."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mimo_engine.demo.words import joined

__all__ = ["Slot"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A value's JSON schema, what it may be, and how a sentence says it."""

    schema: Mapping[str, Any]
    values: Sequence[Any]
    spoken: Mapping[Any, str] = field(default_factory=dict)
    """What a sentence has in place of a value that it does not state as it is, such as true."""

    def draw(self, rng: random.Random) -> Any:
        return rng.choice(self.values)

    def say(self, value: Any) -> str:
        if isinstance(value, list):
            return joined(value)
        return self.spoken.get(value, str(value))
