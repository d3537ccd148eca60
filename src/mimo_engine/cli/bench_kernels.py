"""`mimo-engine bench kernels`: every operator on this GPU, as a share of what that allows."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec

import torch
from tyro.conf import Positional

from mimo_engine.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """Compare each operator with its definition, and its time with what this GPU could do.

    PARTs pick the cases whose names have all of them. A line each goes to
    benchmarks/results/kernels.jsonl. Exit code 1 where one failed, after the others.
    """

    part: Positional[tuple[str, ...]] = ()
    """Of the names of operators and cases, such as: linear "fp8 1 x"."""


def run(command: Command) -> int:
    if not torch.cuda.is_available():
        raise ConfigError("torch sees no GPU here: `bench kernels` times what runs on one")
    if find_spec("triton") is None:
        raise ConfigError(
            "Triton is not installed: it comes with torch's builds for GPUs; `pip install triton`"
        )
    # Not everyone who asks for --help has Triton.
    from mimo_engine.bench.kernels import main  # noqa: PLC0415

    return main(command.part)
