"""Decode steps and prefill of a model's first layers, through `LLM.generate`, beside the peers.

Decode: B random prompts go on by sampling at temperature 1; a step's time is the difference of two
runs of unequal length over the steps that they differ by, so host and scheduler are in it. Then the
same step is captured once more with a counter of the experts that its tokens chose, layer by layer:
they decide how many bytes a step touches, and the share of the limit is of those bytes.

    limit = bytes touched / measured copy rate of this card

Greedy texts are first compared between captured steps and steps run piece by piece, and between a
prompt in one chunk and in several. The peers' numbers are those of perf.md 1: another machine, an
H200, with the same slice of twelve FP8 layers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter

import torch

from mimo_engine.bench.kernels import Ceilings, measure_ceilings
from mimo_engine.bench.record import append_result
from mimo_engine.bench.slice import random_slice
from mimo_engine.config.engine import RandomWeights
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.kernels.quant import Weight
from mimo_engine.layers.mlp import MoeMlp
from mimo_engine.llm import LLM
from mimo_engine.model.text import TextModel

__all__ = ["main_prefill", "main_step"]

_CHUNK = 8192
_NUM_TOGETHER, _NUM_MORE = 8, 64
"""Steps of all requests at once, at least, and by how many tokens one run is longer."""
_BATCHES = (1, 8, 32, 128)
_NUM_CHECKED_LAYERS = 3
_PEERS = {  # ms; perf.md 1
    "vLLM 0.26.0": {"1": 2.19, "8": 6.57, "32": 14.69, "128": 36.0, "4096": 67.9, "32768": 580},
    "SGLang 0.5.17": {"1": 2.67, "8": 6.38, "32": 12.58, "128": 19.63, "4096": 57.6, "32768": 479},
}


def _params(num_tokens: int, temperature: float = 1.0) -> SamplingParams:
    return SamplingParams(max_tokens=num_tokens, temperature=temperature, ignore_eos=True, seed=1)


def _prompts(count: int, length: int, generator: torch.Generator) -> list[list[int]]:
    return [
        torch.randint(1000, 150_000, (length,), generator=generator).tolist() for _ in range(count)
    ]


def _timed(engine: LLM, prompts: list[list[int]], num_tokens: int) -> float:
    torch.cuda.synchronize()
    started = perf_counter()
    engine.generate(prompts, _params(num_tokens))
    return perf_counter() - started


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """What a step reads, in bytes, and how many experts, a MoE layer and step."""

    num_bytes: int
    num_experts: float


def measure_step(engine: LLM, batch: int, context: int, num_rounds: int) -> tuple[float, Touched]:
    """(milliseconds of a step, what it touches)."""
    generator = torch.Generator().manual_seed(batch)
    # While the last prompts are computed, the first requests decode already.
    short = (batch * context // _CHUNK + _NUM_TOGETHER) * (1 + _depth(engine))
    _timed(engine, _prompts(batch, context, generator), short)
    times = []
    for _ in range(num_rounds):
        prompts = _prompts(batch, context, generator)
        seconds = [_timed(engine, prompts, count) for count in (short, short + _NUM_MORE)]
        times.append((seconds[1] - seconds[0]) / _NUM_MORE)
    return 1e3 * median(times), _touched(engine, _prompts(batch, context, generator), short)


def _depth(engine: LLM) -> int:
    """Drafts of a step."""
    return engine.core.executor.worker.num_draft_layers


def _touched(engine: LLM, prompts: list[list[int]], num_tokens: int) -> Touched:
    """Of steps like those that were timed, with a counter in the graph."""
    worker = engine.core.executor.worker
    layers = [layer for layer in worker.model.modules() if isinstance(layer, MoeMlp)]
    assert worker.runner is not None
    graphs = worker.runner.graphs
    assert graphs is not None, "nothing is captured: this bench is for GPUs"
    depth, batch = worker.num_draft_layers, len(prompts)
    router = worker.model.config.router
    assert router is not None
    size = (batch * (1 + depth), router.num_experts_per_tok)
    chosen = [torch.zeros(size, dtype=torch.int32, device="cuda") for _ in layers]
    hooks = []
    for index, layer in enumerate(layers):

        def keep(_: object, __: object, out: tuple[torch.Tensor, ...], index: int = index) -> None:
            if out[0].shape == size:  # otherwise a prompt
                chosen[index].copy_(out[0])

        hooks.append(layer.gate.register_forward_hook(keep))
    graphs.forget(batch, depth)
    engine.generate(prompts, _params(num_tokens))
    num_experts = sum(len(one.unique()) for one in chosen) / max(1, len(chosen))
    for hook in hooks:
        hook.remove()
    graphs.forget(batch, depth)
    return Touched(
        num_bytes=_bytes(worker.model, num_experts, batch, len(prompts[0])), num_experts=num_experts
    )


def _bytes(model: TextModel, num_experts: float, batch: int, context: int) -> int:
    """Weights but experts and embedding once, the experts touched, K and V of all contexts."""
    dense = experts = 0
    for name, weight in _weights(model):
        if ".experts." in name:
            experts += weight.nbytes
        elif name != "embed_tokens.weight":
            dense += weight.nbytes
    total = dense
    config = model.config
    if experts:
        assert config.router is not None
        total += round(experts * num_experts / config.router.num_experts)
    for spec in config.layers:
        seen = min(context, spec.num_visible_tokens or context)
        total += batch * seen * 2 * spec.kv_elements_per_token
    return total


def _weights(model: TextModel) -> list[tuple[str, Weight]]:
    """Parameters, and weights in formats of their own."""
    found: list[tuple[str, Weight]] = list(model.named_parameters())
    for prefix, module in model.named_modules():
        weight = getattr(module, "weight", None)
        if weight is not None and not isinstance(weight, torch.Tensor):
            found.append((f"{prefix}.weight", weight))
    return found


def _check(weights: RandomWeights) -> dict[str, float]:
    """Shares of greedy tokens that are the same, by another way to compute them; on a few layers,
    which leave memory for several engines."""
    generator = torch.Generator().manual_seed(0)
    prompts = [_prompts(1, length, generator)[0] for length in (300, 1000, 1700)]
    texts = {}
    for name, chunk, captured in (
        ("captured", _CHUNK, True),
        ("piece by piece", _CHUNK, False),
        ("in chunks", 256, True),
    ):
        with random_slice(
            _NUM_CHECKED_LAYERS,
            weights,
            kv_cache_gib=1.0,
            max_num_seqs=4,
            max_num_batched_tokens=chunk,
            captured=captured,
        ) as engine:
            outputs = engine.generate(prompts, _params(32, temperature=0.0))
            texts[name] = [output.token_ids for output in outputs]
    return {
        name: sum(_same(a, b) for a, b in zip(own, texts["captured"], strict=True)) / len(own)
        for name, own in texts.items()
    }


def _same(first: Sequence[int], second: Sequence[int]) -> float:
    """The part before the first difference."""
    pairs = enumerate(zip(first, second, strict=True))
    return next((i for i, (a, b) in pairs if a != b), len(first)) / len(first)


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"mimo-engine bench {name}")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--weights", default="random-fp8")
    parser.add_argument("--kv-cache-gib", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--mxfp4-activations", choices=("bf16", "fp8"), default="bf16")
    return parser


def _save(name: str, options: argparse.Namespace, ceilings: Ceilings, results: object) -> None:
    append_result(
        name,
        {
            "device": torch.cuda.get_device_name(),
            "config": {key: value for key, value in vars(options).items() if value is not None},
            "copy_TB_per_s": round(ceilings.copy_bytes_per_s / 1e12, 3),
            "results": results,
        },
    )


def main_step(arguments: Sequence[str] | None = None) -> None:
    """Print the table of decode steps and append one JSON line."""
    parser = _parser("step")
    parser.add_argument("--drafts", type=int, default=0, help="verified and made in every step")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024])
    parser.add_argument("--batches", type=int, nargs="+", default=list(_BATCHES))
    parser.add_argument("--check", action="store_true", help="compare greedy texts first")
    options = parser.parse_args(arguments)
    results: dict[str, object] = {}
    if options.check:
        results["same greedy tokens"] = _check(options.weights)
        print(f"greedy tokens before the first difference: {results['same greedy tokens']}")
    ceilings = measure_ceilings()
    started = perf_counter()
    with random_slice(
        options.layers,
        options.weights,
        kv_cache_gib=options.kv_cache_gib,
        num_drafts=options.drafts,
        mxfp4_activations=options.mxfp4_activations,
    ) as engine:
        results["start_s"] = round(perf_counter() - started, 1)
        print(
            f"{torch.cuda.get_device_name()}, {options.layers} layers {options.weights}, "
            f"{options.drafts} drafts, start {results['start_s']} s"
        )
        print(
            f"{'batch':>6}{'context':>9}{'ms/step':>10}{'experts':>9}{'GB':>8}{'share':>7}   peers"
        )
        for context in options.contexts:
            for batch in options.batches:
                ms, touched = measure_step(engine, batch, context, options.rounds)
                share = touched.num_bytes / ceilings.copy_bytes_per_s / (ms / 1e3)
                is_peers = context == 1024 and options.layers == 12 and not options.drafts
                peers = {name: own.get(str(batch)) for name, own in _PEERS.items()}
                print(
                    f"{batch:>6}{context:>9}{ms:>10.3f}{touched.num_experts:>9.1f}"
                    f"{touched.num_bytes / 1e9:>8.2f}{share:>7.0%}   {peers if is_peers else ''}",
                    flush=True,
                )
                results[f"batch {batch}, context {context}"] = {
                    "ms": round(ms, 4),
                    "experts": round(touched.num_experts, 1),
                    "GB": round(touched.num_bytes / 1e9, 3),
                    "share_of_limit": round(share, 4),
                }
    _save("step", options, ceilings, results)


def main_prefill(arguments: Sequence[str] | None = None) -> None:
    """Print the times of one prompt's prefill and its first token, and append one JSON line."""
    parser = _parser("prefill")
    parser.add_argument("--lengths", type=int, nargs="+", default=[4096, 32768])
    options = parser.parse_args(arguments)
    ceilings = measure_ceilings()
    generator = torch.Generator().manual_seed(0)
    results = {}
    with random_slice(
        options.layers,
        options.weights,
        kv_cache_gib=options.kv_cache_gib,
        max_num_seqs=8,
        mxfp4_activations=options.mxfp4_activations,
    ) as engine:
        for length in options.lengths:
            _timed(engine, _prompts(1, length, generator), 1)
            times = [
                1e3 * _timed(engine, _prompts(1, length, generator), 1)
                for _ in range(options.rounds)
            ]
            peers = {name: own.get(str(length)) for name, own in _PEERS.items()}
            print(f"prefill {length:>6}: {median(times):8.1f} ms   {peers}", flush=True)
            results[str(length)] = round(median(times), 2)
    _save("prefill", options, ceilings, results)
