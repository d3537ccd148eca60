"""`mimo-engine bench prefill`: how long a prompt takes through a model's first layers."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import torch

from mimo_engine.bench.slice import SliceOptions
from mimo_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Time the prefill of one prompt and its first token, through the engine, on random weights of
    the real shapes.

    A line each goes to benchmarks/results/prefill.jsonl.
    """

    slice: SliceOptions = field(default_factory=SliceOptions)
    lengths: tuple[tuple[int, ...], ...] = ()
    """Tokens of a prompt. Default: 4096 32768."""
    image: bool = False
    """An image of 1,024 x 1,024 through the vision tower first."""


def run(command: Command) -> int:
    if not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here: `bench prefill` times what runs on one")
    # Not everyone who asks for --help has Triton.
    from mimo_engine.bench.prefill import LENGTHS, bench_prefill  # noqa: PLC0415

    lengths = tuple(chain(*command.lengths)) or LENGTHS
    bench_prefill(command.slice, lengths=lengths, image=command.image)
    return 0
