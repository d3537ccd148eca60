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

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import perf_counter

import torch
from torch import nn

from mimo_engine.bench.ceilings import Ceilings, measure_ceilings
from mimo_engine.bench.record import append_result
from mimo_engine.bench.slice import random_slice
from mimo_engine.cache.groups import num_pages_for
from mimo_engine.config.engine import Mxfp4Activations, RandomWeights
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import ConfigError
from mimo_engine.kernels.quant import Weight
from mimo_engine.layers.mlp import MoeMlp
from mimo_engine.llm import LLM
from mimo_engine.messages import NewRequest
from mimo_engine.model.mtp import MtpLayers
from mimo_engine.model.text import TextModel

__all__ = ["BATCHES", "CONTEXTS", "LENGTHS", "SliceOptions", "bench_prefill", "bench_steps"]

_CHUNK = 8192
_NUM_TOGETHER, _NUM_MORE = 8, 64
"""Steps of all requests at once, at least, and by how many tokens one run is longer."""
_NUM_COUNTED = 4096
"""Tokens of requests whose experts are counted: never reached."""
BATCHES = (1, 8, 32, 128)
CONTEXTS = (1024,)
LENGTHS = (4096, 32768)
_NUM_CHECKED_LAYERS = 3
_PEERS = {  # ms; perf.md 1
    "vLLM 0.26.0": {1: 2.19, 8: 6.57, 32: 14.69, 128: 36.0, 4096: 67.9, 32768: 580},
    "SGLang 0.5.17": {1: 2.67, 8: 6.38, 32: 12.58, 128: 19.63, 4096: 57.6, 32768: 479},
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
    """(milliseconds of a step, what it touches). Raises ConfigError where the cache is too small
    for all requests at once: some would wait, and the step would be of fewer."""
    generator = torch.Generator().manual_seed(batch)
    # While the last prompts are computed, the first requests decode already.
    short = (batch * context // _CHUNK + _NUM_TOGETHER) * (1 + _depth(engine))
    _check_room(engine, batch, context + short + _NUM_MORE)
    _timed(engine, _prompts(batch, context, generator), short)
    times = []
    for _ in range(num_rounds):
        prompts = _prompts(batch, context, generator)
        seconds = [_timed(engine, prompts, count) for count in (short, short + _NUM_MORE)]
        times.append((seconds[1] - seconds[0]) / _NUM_MORE)
    return 1e3 * median(times), _touched(engine, _prompts(batch, context, generator))


def _check_room(engine: LLM, batch: int, num_tokens: int) -> None:
    info = engine.core.info()
    pages = batch * num_pages_for(num_tokens + 2 * (1 + _depth(engine)), info.page_size)
    if pages > info.num_full_pages:
        raise ConfigError(
            f"{batch} requests of {num_tokens} tokens need {pages} pages and the cache has "
            f"{info.num_full_pages}: raise --kv-cache-gib {pages / info.num_full_pages:.1f} times"
        )


def _depth(engine: LLM) -> int:
    """Drafts of a step."""
    return engine.core.executor.worker.num_draft_layers


def _touched(engine: LLM, prompts: list[list[int]]) -> Touched:
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
    chosen = [torch.zeros(size, dtype=torch.int32, device=worker.device) for _ in layers]
    hooks = []
    for index, layer in enumerate(layers):

        def keep(_: object, __: object, out: tuple[torch.Tensor, ...], index: int = index) -> None:
            if out[0].shape == size:  # otherwise a prompt
                chosen[index].copy_(out[0])

        hooks.append(layer.gate.register_forward_hook(keep))
    graphs.forget(batch, depth)
    num_experts = _num_experts(engine, prompts, chosen)
    for hook in hooks:
        hook.remove()
    graphs.forget(batch, depth)
    num_bytes = _bytes(worker.model, num_experts, batch, len(prompts[0]))
    if depth:
        num_bytes += _draft_bytes(worker.model, worker.draft_layers, batch)
    return Touched(num_bytes=num_bytes, num_experts=num_experts)


def _num_experts(engine: LLM, prompts: list[list[int]], chosen: list[torch.Tensor]) -> float:
    """Distinct ones of a layer, the mean over steps in which every request has its row: `chosen`
    holds what the last step chose."""
    core, names = engine.core, [f"counted-{i}" for i in range(len(prompts))]
    for name, prompt in zip(names, prompts, strict=True):
        core.add(NewRequest(request_id=name, prompt_token_ids=prompt, params=_params(_NUM_COUNTED)))
    counts = []
    # The first step that brings all of them a token may still hold a prompt's chunk.
    num_whole = 0
    while num_whole < _NUM_TOGETHER:
        num_whole += len({output.request_id for output in core.step()}) == len(prompts)
        if num_whole > 2:
            counts += [len(one.unique()) for one in chosen]
    for name in names:
        core.abort(name)
    while core.has_work:
        core.step()
    return sum(counts) / max(1, len(counts))


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


def _draft_bytes(model: TextModel, layers: MtpLayers, batch: int) -> int:
    """Each draft layer once and the head once a draft, and K and V of the layers' windows."""
    spec = model.config.mtp_layer
    windows = batch * (spec.num_visible_tokens or 0) * 2 * spec.kv_elements_per_token
    head = next(weight.nbytes for name, weight in _weights(model) if name == "lm_head.weight")
    own = sum(weight.nbytes for _, weight in _weights(layers))
    return own + len(layers.layers) * (head + windows)


def _weights(model: nn.Module) -> list[tuple[str, Weight]]:
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


@dataclass(frozen=True, kw_only=True, slots=True)
class SliceOptions:
    """Which model, and how it is run."""

    layers: int = 12
    """Of MiMo-V2.5, from the first on."""
    weights: RandomWeights = "random-fp8"
    mxfp4_activations: Mxfp4Activations = "bf16"
    kv_cache_gib: float = 8.0
    rounds: int = 5
    """Of which the median counts."""


def _save(
    name: str, options: SliceOptions, more: dict[str, object], ceilings: Ceilings, results: object
) -> None:
    append_result(
        name,
        {
            "device": torch.cuda.get_device_name(),
            "config": {**asdict(options), **more},
            "copy_TB_per_s": round(ceilings.copy_bytes_per_s / 1e12, 3),
            "results": results,
        },
    )


def bench_steps(
    options: SliceOptions,
    *,
    batches: Sequence[int] = BATCHES,
    contexts: Sequence[int] = CONTEXTS,
    drafts: int = 0,
    check: bool = False,
) -> None:
    """Print the table of decode steps and append one JSON line. drafts: verified and made in every
    step. check: compare greedy texts first."""
    results: dict[str, object] = {}
    if check:
        results["same greedy tokens"] = _check(options.weights)
        print(f"greedy tokens before the first difference: {results['same greedy tokens']}")
    ceilings = measure_ceilings()
    started = perf_counter()
    with random_slice(
        options.layers,
        options.weights,
        kv_cache_gib=options.kv_cache_gib,
        num_drafts=drafts,
        max_num_batched_tokens=_CHUNK,
        mxfp4_activations=options.mxfp4_activations,
    ) as engine:
        results["start_s"] = round(perf_counter() - started, 1)
        print(
            f"{torch.cuda.get_device_name()}, {options.layers} layers {options.weights}, "
            f"{drafts} drafts, start {results['start_s']} s"
        )
        print(f"{'batch':>6}{'context':>9}{'ms':>9}{'experts':>9}{'GB':>8}{'share':>7}   peers")
        is_peers = options.layers == 12 and options.weights == "random-fp8" and not drafts
        for context in contexts:
            for batch in batches:
                ms, touched = measure_step(engine, batch, context, options.rounds)
                share = touched.num_bytes / ceilings.copy_bytes_per_s / (ms / 1e3)
                peers = _peers(batch) if is_peers and context == 1024 else ""
                print(
                    f"{batch:>6}{context:>9}{ms:>9.3f}{touched.num_experts:>9.1f}"
                    f"{touched.num_bytes / 1e9:>8.2f}{share:>7.0%}   {peers}",
                    flush=True,
                )
                results[f"batch {batch}, context {context}"] = {
                    "ms": round(ms, 4),
                    "experts": round(touched.num_experts, 1),
                    "GB": round(touched.num_bytes / 1e9, 3),
                    "share_of_limit": round(share, 4),
                }
    _save("step", options, {"drafts": drafts}, ceilings, results)


def bench_prefill(options: SliceOptions, *, lengths: Sequence[int] = LENGTHS) -> None:
    """Print the times of one prompt's prefill and its first token, and append one JSON line."""
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
        for length in lengths:
            _timed(engine, _prompts(1, length, generator), 1)
            times = [
                1e3 * _timed(engine, _prompts(1, length, generator), 1)
                for _ in range(options.rounds)
            ]
            print(f"prefill {length:>6}: {median(times):8.1f} ms   {_peers(length)}", flush=True)
            results[str(length)] = round(median(times), 2)
    _save("prefill", options, {}, ceilings, results)


def _peers(size: int) -> dict[str, float | None]:
    """Milliseconds, by batch size or length of prompt."""
    return {name: own.get(size) for name, own in _PEERS.items()}
