"""An engine over random weights, and what its start took."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any

import torch

from mimo_engine.bench.compilations import counted_compilations
from mimo_engine.bench.slice import SliceOptions, random_slice
from mimo_engine.llm import LLM

__all__ = ["started_slice"]


@contextmanager
def started_slice(
    options: SliceOptions,
    *,
    num_drafts: int = 0,
    max_num_seqs: int = 128,
    max_num_batched_tokens: int = 8192,
) -> Iterator[tuple[LLM, dict[str, Any]]]:
    """(the engine, its start as a bench records it): seconds, kernels that were compiled and that
    were found compiled, and how many captured steps there are and what memory they took."""
    torch.cuda.empty_cache()  # what was measured before this left there
    with ExitStack() as stack:
        started = perf_counter()
        with counted_compilations() as kernels:
            engine = stack.enter_context(
                random_slice(
                    options.layers,
                    options.weights,
                    kv_cache_gib=options.kv_cache_gib,
                    num_drafts=num_drafts,
                    max_num_seqs=max_num_seqs,
                    max_num_batched_tokens=max_num_batched_tokens,
                    mxfp4_activations=options.mxfp4_activations,
                )
            )
        start: dict[str, Any] = {
            "s": round(perf_counter() - started, 1),
            "compiled": kernels.num_compiled,
            "found_compiled": kernels.num_found,
            "compiler_s": round(kernels.seconds, 1),
        }
        runner = engine.core.executor.worker.runner
        assert runner is not None
        if runner.graphs is not None:
            memory = runner.graphs.memory
            start["graphs"] = memory.num_graphs
            start["graph_MiB"] = round(memory.num_bytes / 2**20)
            start["graph_driver_MiB"] = round(memory.num_driver_bytes / 2**20)
        yield engine, start
