"""`mimo-engine bench step`: decode steps of a model's first layers, as a share of the limit."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

import torch

from mimo_engine.bench.slice import SliceOptions
from mimo_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Time decode steps through the engine on random weights of the real shapes: milliseconds,
    experts and bytes touched, and the share of what this GPU's memory allows.

    A line each goes to benchmarks/results/step.jsonl. Exit code 1 where logits that are compared
    are further apart than rounding makes them.
    """

    slice: SliceOptions = field(default_factory=SliceOptions)
    batches: tuple[tuple[int, ...], ...] = ()
    """Requests at once. Default: 1 8 32 128."""
    contexts: tuple[tuple[int, ...], ...] = ()
    """Tokens of each prompt. Default: 1024."""
    drafts: int = 0
    """Verified and made in every step."""
    check: bool = False
    """Compare logits first: kernels with the definitions in float32, captured steps with single
    ones, chunks and a prefix hit with a whole prompt; on three layers."""


def run(command: Command) -> int:
    if not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here: `bench step` times what runs on one")
    # Not everyone who asks for --help has Triton.
    from mimo_engine.bench.decode import BATCHES, CONTEXTS, bench_steps  # noqa: PLC0415

    return bench_steps(
        command.slice,
        batches=tuple(chain(*command.batches)) or BATCHES,
        contexts=tuple(chain(*command.contexts)) or CONTEXTS,
        drafts=command.drafts,
        check=command.check,
    )
