"""What steps and prompts really read, in bytes, and what they have to multiply.

The experts that tokens chose decide it: routers tell them, layer by layer, while the engine goes on
as it does otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import nn

from mimo_engine.bench.ceilings import Ceilings
from mimo_engine.checkpoint.params import ParamSpec, Storage, parameter_specs
from mimo_engine.config.model import ModelConfig
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.kernels.quant import Weight
from mimo_engine.layers.mlp import MoeMlp
from mimo_engine.llm import LLM
from mimo_engine.messages import NewRequest
from mimo_engine.model.mtp import MtpLayers
from mimo_engine.model.text import TextModel
from mimo_engine.worker.worker import Worker

__all__ = ["Touched", "prompt_seconds", "prompt_touches", "step_touches"]

_NUM_COUNTED = 4096
"""Tokens of requests whose experts are counted: never reached."""
_NUM_STEPS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class Touched:
    """By a step, or by a prompt."""

    num_bytes: int
    """Of the text model: a step's verification, where there are drafts."""
    num_draft_bytes: int = 0
    """Of draft layers."""
    num_experts: float
    """Distinct ones, a MoE layer and pass."""

    @property
    def num_all_bytes(self) -> int:
        return self.num_bytes + self.num_draft_bytes


def step_touches(engine: LLM, prompts: Sequence[list[int]]) -> Touched:
    """Of steps that give each request behind these prompts a token, with a counter in the graph."""
    worker: Worker = engine.core.executor.worker
    assert worker.runner is not None
    graphs = worker.runner.graphs
    assert graphs is not None, "nothing is captured: this bench is for GPUs"
    depth, batch = worker.num_draft_layers, len(prompts)
    router = worker.model.config.router
    assert router is not None
    size = (batch * (1 + depth), router.num_experts_per_tok)
    chosen: dict[int, torch.Tensor] = {}

    def keep(layer: int, experts: torch.Tensor) -> None:
        if experts.shape == size:  # otherwise a prompt
            if layer not in chosen:
                chosen[layer] = torch.zeros_like(experts)
            chosen[layer].copy_(experts)

    graphs.forget(batch, depth)
    with _routers_tell(worker.model, keep):
        num_experts = _num_experts(engine, prompts, chosen)
    graphs.forget(batch, depth)
    model, context = worker.model, len(prompts[0])
    return Touched(
        num_bytes=_dense_bytes(model)
        + _expert_bytes(model, num_experts)
        + batch * _kv_bytes(model.config, context, 1),
        num_draft_bytes=_draft_bytes(model, worker.draft_layers, batch) if depth else 0,
        num_experts=num_experts,
    )


def prompt_touches(engine: LLM, prompt: list[int]) -> Touched:
    """Of all chunks of one prompt."""
    model: TextModel = engine.core.executor.worker.model
    counts: list[int] = []
    ends: dict[int, list[int]] = {}

    def count(layer: int, experts: torch.Tensor) -> None:
        counts.append(len(experts.unique()))
        own = ends.setdefault(layer, [0])
        own.append(own[-1] + len(experts))

    with _routers_tell(model, count):
        engine.generate([prompt], SamplingParams(max_tokens=1, temperature=0.0, ignore_eos=True))
    num_experts = sum(counts) / max(1, len(counts))
    chunks = next(iter(ends.values()), [0, len(prompt)])
    num_bytes = sum(
        _dense_bytes(model)
        + _expert_bytes(model, num_experts)
        + _kv_bytes(model.config, end, end - start)
        for start, end in pairwise(chunks)
    )
    return Touched(num_bytes=num_bytes, num_experts=num_experts)


def prompt_seconds(engine: LLM, length: int, ceilings: Ceilings) -> float:
    """Of the products of a prompt alone, at the measured rates: FP8 where both operands are."""
    worker: Worker = engine.core.executor.worker
    config, settings = worker.model.config, engine.config
    seconds = 0.0
    for name, spec in parameter_specs(config).items():
        if spec.storage is not Storage.LINEAR and name != "lm_head.weight":
            continue
        share = 1.0
        if spec.num_experts is not None:
            assert config.router is not None
            share = config.router.num_experts_per_tok / spec.num_experts
        rows = 1 if name == "lm_head.weight" else length
        flops = 2 * rows * share * prod(spec.shape)
        is_fp8 = _is_fp8(name, spec, settings.weights, settings.mxfp4_activations)
        seconds += flops / (ceilings.fp8_flops if is_fp8 else ceilings.bf16_flops)
    for layer in config.layers:
        seen = min(length, layer.num_visible_tokens or length)
        # The first `seen` rows see a triangle of keys, the others all of a window.
        num_pairs = seen * (seen + 1) // 2 + (length - seen) * seen
        width = layer.num_heads * (layer.qk_head_dim + layer.v_head_dim)
        seconds += 2 * num_pairs * width / ceilings.bf16_flops
    return seconds


def _is_fp8(name: str, spec: ParamSpec, weights: str, mxfp4_activations: str) -> bool:
    """As random weights are made (checkpoint/random_weights.py)."""
    if weights == "random-bf16" or ".o_proj." in name or spec.storage is not Storage.LINEAR:
        return False
    return spec.num_experts is None or weights != "random-mxfp4" or mxfp4_activations == "fp8"


@contextmanager
def _routers_tell(model: TextModel, tell: Callable[[int, torch.Tensor], None]) -> Iterator[None]:
    """tell(which MoE layer, experts [N, k]) in every pass; what it does is captured with a step."""
    layers = [layer for layer in model.modules() if isinstance(layer, MoeMlp)]
    hooks = []
    for index, layer in enumerate(layers):

        def hook(_: object, __: object, out: tuple[torch.Tensor, ...], index: int = index) -> None:
            tell(index, out[0])

        hooks.append(layer.gate.register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _num_experts(
    engine: LLM, prompts: Sequence[list[int]], chosen: dict[int, torch.Tensor]
) -> float:
    """Distinct ones of a layer, the mean over steps in which every request has its row: `chosen`
    holds what the last step chose."""
    core, names = engine.core, [f"counted-{i}" for i in range(len(prompts))]
    params = SamplingParams(max_tokens=_NUM_COUNTED, temperature=1.0, ignore_eos=True, seed=1)
    for name, prompt in zip(names, prompts, strict=True):
        core.add(NewRequest(request_id=name, prompt_token_ids=prompt, params=params))
    counts = []
    # The first step that brings all of them a token may still hold a prompt's chunk.
    num_whole = 0
    while num_whole < _NUM_STEPS:
        num_whole += len({output.request_id for output in core.step()}) == len(prompts)
        if num_whole > 2:
            counts += [len(one.unique()) for one in chosen.values()]
    for name in names:
        core.abort(name)
    while core.has_work:
        core.step()
    return sum(counts) / max(1, len(counts))


def _dense_bytes(model: TextModel) -> int:
    """Of weights but experts and embedding, once."""
    return sum(
        weight.nbytes
        for name, weight in _weights(model)
        if ".experts." not in name and name != "embed_tokens.weight"
    )


def _expert_bytes(model: TextModel, num_experts: float) -> int:
    """Of so many experts a layer."""
    router = model.config.router
    if router is None:
        return 0
    all_bytes = sum(weight.nbytes for name, weight in _weights(model) if ".experts." in name)
    return round(all_bytes * num_experts / router.num_experts)


def _kv_bytes(config: ModelConfig, end: int, num_rows: int) -> int:
    """Of keys and values that the rows before `end` see, in bfloat16."""
    total = 0
    for spec in config.layers:
        visible = spec.num_visible_tokens
        seen = end if visible is None else min(end, visible + num_rows - 1)
        total += seen * 2 * spec.kv_elements_per_token
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
