"""Cases of the experts, by number of tokens and format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch

from mimo_engine.kernels.linear.cases import random_fp8
from mimo_engine.kernels.moe import mxfp4, mxfp4_reference, reference, router, triton
from mimo_engine.kernels.moe.many_tokens import (
    DOWN_TILINGS,
    SERVED,
    UP_TILINGS,
    ManyPlan,
    Pieces,
    Tiling,
    experts_many,
)
from mimo_engine.kernels.op import Arguments, Case, Op, Work
from mimo_engine.kernels.quant import Fp8BlockWeight, Mxfp4Weight
from mimo_engine.kernels.quant.mxfp4_layout import Activations, PackedMxfp4, pack_mxfp4

__all__ = ["OPS", "random_arguments"]


def _random_mxfp4(
    num_experts: int, num_rows: int, size: int, activations: Activations, device: torch.device
) -> PackedMxfp4:
    """Values around 0.05, some groups of zeros under a large exponent, some too small for FP8."""
    packed = torch.randint(
        256, (num_experts, num_rows, size // 2), dtype=torch.uint8, device=device
    )
    scales = torch.randint(
        117, 124, (num_experts, num_rows, size // 32), dtype=torch.uint8, device=device
    )
    packed.unflatten(-1, (-1, 16))[:, 1::5, ::7] = 0
    scales[:, 1::5, ::7] = 140
    scales[:, ::6, ::5] = 100
    return pack_mxfp4(Mxfp4Weight(packed=packed, scales=scales), activations)[0]


def random_arguments(
    num_tokens: int,
    shape: Sequence[int],
    top_k: int,
    is_fp8: bool,
    activations: Activations | None,
    device: torch.device,
) -> Arguments:
    num_experts, size, width = shape
    # Crowded experts and idle ones.
    scores = torch.rand(num_tokens, num_experts, device=device)
    if num_experts < 32:
        scores += torch.linspace(0, 1, num_experts, device=device)
    x = torch.randn(num_tokens, size, device=device).bfloat16()
    if activations is not None:
        gate_up = _random_mxfp4(num_experts, 2 * width, size, activations, device)
        down = _random_mxfp4(num_experts, size, width, activations, device)
    elif is_fp8:
        gate_up = random_fp8(2 * width, size, 2 * width, device, num_experts)
        down = random_fp8(size, width, size, device, num_experts)
    else:
        gate_up = torch.randn(num_experts, 2 * width, size, device=device).bfloat16() * 0.05
        down = torch.randn(num_experts, size, width, device=device).bfloat16() * 0.05
    weights = torch.rand(num_tokens, top_k, device=device)
    return {
        "x": x,
        "chosen": scores.topk(top_k, dim=-1).indices.int(),
        "weights": weights / weights.sum(dim=-1, keepdim=True),
        "gate_up": gate_up,
        "down": down,
    }


def _work(arguments: Arguments) -> Work:
    x, chosen, gate_up = arguments["x"], arguments["chosen"], arguments["gate_up"]
    num_experts = gate_up.shape[0]
    touched = num_experts if chosen.is_meta else len(chosen.unique())
    weight_bytes = (gate_up.nbytes + arguments["down"].nbytes) // num_experts
    return Work(
        num_bytes=touched * weight_bytes + 2 * x.nbytes,
        num_flops=6 * chosen.numel() * x.shape[1] * gate_up.shape[1] // 2,
        is_fp8=isinstance(gate_up, Fp8BlockWeight)
        or (isinstance(gate_up, PackedMxfp4) and gate_up.activations == "fp8"),
    )


def _make_routing(
    num_tokens: int,
    num_experts: int,
    size: int,
    top_k: int,
    normalises: bool,
    device: torch.device,
) -> Arguments:
    return {
        "x": torch.randn(num_tokens, size, device=device).bfloat16(),
        "weight": torch.randn(num_experts, size, device=device) * size**-0.5,
        "bias": 0.1 * torch.randn(num_experts, device=device),
        "top_k": top_k,
        "norm_topk_prob": normalises,
        "scaling_factor": 1.0 if normalises else 2.5,
    }


def _routing(num_tokens: int, num_experts: int, size: int, top_k: int, normalises: bool) -> Case:
    def work(arguments: Arguments) -> Work:
        x, weight = arguments["x"], arguments["weight"]
        return Work(num_bytes=x.nbytes + weight.nbytes + 8 * top_k * num_tokens)

    return Case(
        name=f"{num_tokens} tokens, {num_experts} experts of {size}",
        make=partial(_make_routing, num_tokens, num_experts, size, top_k, normalises),
        work=work if size == 4096 else None,
        is_small=size < 4096,
    )


def _case(
    num_tokens: int,
    shape: Sequence[int],
    top_k: int,
    is_fp8: bool,
    activations: Activations | None = None,
) -> Case:
    """With `activations`: MXFP4 weights, packed for them."""
    is_small = shape[0] < 32
    return Case(
        name=f"{'fp8' if is_fp8 else 'bf16'} {num_tokens} tokens, {shape[0]} experts",
        make=partial(random_arguments, num_tokens, shape, top_k, is_fp8, activations),
        work=None if is_small else _work,
        is_small=is_small,
    )


_SMALL = (5, 128, 72)
_REAL = (256, 4096, 2048)
_COUNTS = (1, 4, 8, 16, 32, 64, 128, 256, 512, 4096)


def _mxfp4_op(activations: Activations, tolerance: float) -> Op:
    def case(num_tokens: int, shape: Sequence[int], top_k: int) -> Case:
        return _case(num_tokens, shape, top_k, activations == "fp8", activations)

    return Op(
        name="experts mxfp4",
        reference=lambda **named: _summed(mxfp4_reference.experts(**named)),
        triton=lambda **named: _summed(mxfp4.experts(**named)),
        cases=(
            case(1, (5, 192, 96), 2),
            case(3, (6, 256, 128), 2),
            case(9, (5, 512, 160), 3),
            case(40, (4, 192, 320), 2),
            # Programs enough for the largest tiles.
            case(30, (28, 64, 480), 2),
            case(300, (3, 192, 96), 2),
            *(case(count, _REAL, 8) for count in _COUNTS),
        ),
        tolerance=tolerance,
    )


def _tiled_op(name: str, plan: ManyPlan, *, is_new: bool) -> Op:
    """A way to cut many tokens that is not what is served; is_new: of tiles unlike others'."""

    def experts(
        x: torch.Tensor,
        chosen: torch.Tensor,
        weights: torch.Tensor,
        gate_up: Fp8BlockWeight,
        down: Fp8BlockWeight,
    ) -> tuple[torch.Tensor]:
        first, second = Pieces.of(gate_up), Pieces.of(down)
        return _summed(experts_many(x, chosen, weights, first, second, plan))

    # Tiles of 128: one with and one without more than 32 beyond, halves, short ones.
    small = (_case(150, (2, 128, 128), 1, True), _case(180, (5, 256, 128), 2, True))
    return Op(
        name=f"experts, {name}",
        reference=lambda **named: _summed(reference.experts(**named)),
        triton=experts,
        cases=(
            *(small if is_new else ()),
            *(_case(count, _REAL, 8, True) for count in (4096, 8192)),
        ),
        tolerance=1e-2,
    )


def _tiled_ops() -> Iterator[Op]:
    seen: set[tuple[Tiling, Tiling]] = set()
    for name in dict.fromkeys((*UP_TILINGS, *DOWN_TILINGS)):
        plan = ManyPlan(
            up=UP_TILINGS.get(name, SERVED.up), down=DOWN_TILINGS.get(name, SERVED.down)
        )
        if plan != SERVED:
            tiles = (_tiles_alone(plan.up), _tiles_alone(plan.down))
            yield _tiled_op(name, plan, is_new=tiles not in seen)
            seen.add(tiles)


def _tiles_alone(tiling: Tiling) -> Tiling:
    """Without what is nothing to Triton's interpreter."""
    return replace(tiling, num_warps=1, num_stages=1, max_registers=None)


OPS = (
    Op(
        name="route",
        reference=lambda **named: _scattered(*reference.route(**named), named["weight"]),
        triton=lambda **named: _scattered(*router.route(**named), named["weight"]),
        cases=(
            _routing(1, 12, 64, 3, True),
            _routing(3, 256, 200, 8, True),
            _routing(21, 24, 192, 8, False),
            _routing(300, 16, 64, 2, True),
            *(_routing(count, 256, 4096, 8, True) for count in (1, 4, 8, 32, 128, 4096)),
        ),
        # fp32 throughout; a tie of two experts would show as a large error, and is rare.
        tolerance=1e-4,
    ),
    Op(
        name="experts",
        reference=lambda **named: _summed(reference.experts(**named)),
        triton=lambda **named: _summed(triton.experts(**named)),
        cases=(
            _case(1, _SMALL, 2, True),
            _case(4, (7, 192, 128), 3, True),
            _case(40, _SMALL, 3, True),
            _case(300, _SMALL, 2, True),
            _case(3, _SMALL, 2, False),
            _case(23, _SMALL, 5, False),
            _case(270, _SMALL, 1, False),
            *(_case(count, _REAL, 8, True) for count in _COUNTS),
        ),
        # An activation on the border of two FP8 codes may fall to either side, twice.
        tolerance=1e-2,
    ),
    *_tiled_ops(),
    _mxfp4_op("bf16", 5e-3),
    _mxfp4_op("fp8", 1e-2),
)


def _summed(parts: torch.Tensor) -> tuple[torch.Tensor]:
    return (parts.float().sum(dim=1).bfloat16(),)


def _scattered(
    chosen: torch.Tensor, weights: torch.Tensor, weight: torch.Tensor
) -> tuple[torch.Tensor]:
    """[N, E] weights: the order of a token's experts does not count."""
    dense = weights.new_zeros(len(chosen), len(weight))
    return (dense.scatter_(1, chosen.long(), weights),)
