"""Are a slice's logits the same, by whichever way they are computed?

Each way gives the logits behind the same prompts and behind the tokens that follow, which are led:
recorded as they are, then one token is made the likeliest, so that all ways see one text. They are
compared with the plain definitions in float32, whose weights are the same bits.

Stated: rounding moves the definitions in bfloat16 and FP8 away from float32 by some distance, most
of it where a token's last experts change; the kernels are no further than 1.3 times that, and two
ways of the kernels no further from each other than 1.6 times: two independent roundings would be at
the square root of 2.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from mimo_engine.bench.slice import random_slice
from mimo_engine.checkpoint.params import Storage, parameter_specs
from mimo_engine.config.engine import RandomWeights
from mimo_engine.config.sampling import SamplingParams
from mimo_engine.kernels.op import relative_error
from mimo_engine.llm import LLM
from mimo_engine.model.text import TextModel

__all__ = ["beyond", "compare_slices", "led_logits", "round_like_bfloat16"]

_NUM_LAYERS = 3
"""Full attention with a dense MLP, then windows with experts: 20 GB, beside other tests."""
_LENGTHS, _CHUNK, _NUM_TOKENS = (300, 700, 1000), 256, 16
_LED_TO, _LEAD = 7, 1e4
_FROM_FP32, _AMONG_WAYS = 1.3, 1.6
_FP32, _DEFINED = "definitions in float32", "definitions in bfloat16"
_KERNELS, _SINGLE, _CHUNKS, _HIT = "captured", "single steps", "in chunks", "prefix hit"


def led_logits(
    engine: LLM, prompts: Sequence[list[int]], num_tokens: int, *, hits: bool = False
) -> torch.Tensor:
    """[prompts * num_tokens, V] float32: behind each prompt, and behind the led tokens. hits:
    whether prompts must be found in the prefix cache, or must not."""
    params = SamplingParams(max_tokens=num_tokens, temperature=0.0, ignore_eos=True)
    rows = []
    with _led(engine, num_tokens) as (kept, count):
        # Captures the step with all this in it, where steps are captured, of another prompt.
        engine.generate([[1, 2, 3]], params)
        for prompt in prompts:
            count.zero_()
            (output,) = engine.generate([prompt], params)
            assert output.token_ids == [_LED_TO] * num_tokens, output
            assert (output.num_cached_tokens > 0) == hits, output.num_cached_tokens
            assert int(count) >= num_tokens, "some logits were not seen"
            rows.append(kept[:num_tokens].clone())
    return torch.cat(rows)


@contextmanager
def _led(engine: LLM, num_tokens: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """(logits [T, V] as they come, how many came [1]): in place on the device, so that replayed
    steps leave theirs too."""
    worker = engine.core.executor.worker
    assert worker.runner is not None
    model, graphs = worker.model, worker.runner.graphs
    own, vocabulary = model.raw_logits, model.config.vocab_size
    kept = torch.zeros(2 * num_tokens, vocabulary, device=worker.device)
    count = torch.zeros(1, dtype=torch.int64, device=worker.device)
    lead = torch.zeros(vocabulary, device=worker.device)
    lead[_LED_TO] = _LEAD

    def raw_logits(hidden: torch.Tensor) -> torch.Tensor:
        logits = own(hidden)
        assert len(logits) == 1, "one request at a time"
        kept.index_copy_(0, count, logits.float())
        count.add_(1).clamp_(max=len(kept) - 1)
        return logits + lead.to(logits.dtype)

    if graphs is not None:
        graphs.forget(1, 0)
    model.raw_logits = raw_logits
    try:
        yield kept, count
    finally:
        del model.raw_logits
        if graphs is not None:
            graphs.forget(1, 0)


@torch.no_grad()
def round_like_bfloat16(model: TextModel) -> None:
    """Parameters of a float32 model that a bfloat16 one rounds are rounded in place."""
    rounded = {
        name
        for name, spec in parameter_specs(model.config).items()
        if spec.storage in (Storage.LINEAR, Storage.PLAIN)
    }
    for name, parameter in model.named_parameters():
        if name in rounded and parameter.dtype is torch.float32:
            parameter.copy_(parameter.bfloat16())


def compare_slices(
    weights: RandomWeights, num_layers: int = _NUM_LAYERS
) -> dict[str, dict[str, float]]:
    """Print and return relative errors of logits: of each way against float32 and against captured
    steps. `beyond` judges them."""
    generator = torch.Generator().manual_seed(0)
    prompts = [
        torch.randint(1000, 150_000, (length,), generator=generator).tolist() for length in _LENGTHS
    ]
    found: dict[str, torch.Tensor] = {}
    last: dict[str, torch.Tensor] = {}
    few = partial(random_slice, num_layers, weights, kv_cache_gib=4.0, max_num_seqs=4)
    chunks = partial(few, max_num_batched_tokens=_CHUNK, prefix_caching=True)
    for name, make in (
        (_FP32, partial(few, dtype="float32", kernels="reference")),
        (_DEFINED, partial(few, kernels="reference")),
        (_KERNELS, partial(few, kernels="triton")),
        (_CHUNKS, partial(chunks, kernels="triton")),
    ):
        with make() as engine:
            worker = engine.core.executor.worker
            head = worker.model.lm_head.weight
            assert isinstance(head, torch.Tensor)
            last[name] = head[_LED_TO].bfloat16()
            if name == _FP32:
                round_like_bfloat16(worker.model)
            found[name] = led_logits(engine, prompts, _NUM_TOKENS)
            if name == _CHUNKS:
                found[_HIT] = led_logits(engine, prompts, _NUM_TOKENS, hits=True)
            if name == _KERNELS:
                assert worker.runner is not None
                worker.runner.graphs = None
                found[_SINGLE] = led_logits(engine, prompts, _NUM_TOKENS)
            del worker, head
        gc.collect()
        torch.cuda.empty_cache()
        assert torch.equal(last[name], last[_FP32]), "the same seed made other weights"
    errors = {
        other: {
            name: round(relative_error(logits, found[other]), 5)
            for name, logits in found.items()
            if name != other and not (other == _KERNELS and name in (_FP32, _DEFINED))
        }
        for other in (_FP32, _KERNELS)
    }
    for other, own in errors.items():
        print(f"logits against {other}: {own}", flush=True)
    return errors


def beyond(errors: dict[str, dict[str, float]]) -> list[str]:
    """What is further away than is stated."""
    rounding = errors[_FP32][_DEFINED]
    bounds = {_FP32: _FROM_FP32 * rounding, _KERNELS: _AMONG_WAYS * rounding}
    return [
        f"{name}: {error} from {other}, at most {bounds[other]:.5f}"
        for other, own in errors.items()
        for name, error in own.items()
        if not error <= bounds[other]
    ]
