"""Cases of rope and the write of K and V: parts, widths, far positions, rows that are padding."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from mimo_engine.kernels.op import Arguments, Case, Op, Work
from mimo_engine.kernels.rope_kv import inverse_frequencies, reference, triton

__all__ = ["OP"]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shape:
    num_heads: int
    num_kv_heads: int
    qk_head_dim: int
    v_head_dim: int
    rotary_dim: int
    theta: float

    @property
    def num_columns(self) -> int:
        own = self.num_heads + self.num_kv_heads
        return own * self.qk_head_dim + self.num_kv_heads * self.v_head_dim


_FULL = _Shape(
    num_heads=64, num_kv_heads=4, qk_head_dim=192, v_head_dim=128, rotary_dim=64, theta=1e7
)
_SLIDING = _Shape(
    num_heads=64, num_kv_heads=8, qk_head_dim=192, v_head_dim=128, rotary_dim=64, theta=1e4
)
_DEMO = _Shape(
    num_heads=8, num_kv_heads=4, qk_head_dim=192, v_head_dim=128, rotary_dim=64, theta=1e6
)
_ODD = _Shape(num_heads=3, num_kv_heads=1, qk_head_dim=48, v_head_dim=24, rotary_dim=12, theta=1e4)
_ALL_TURN = _Shape(
    num_heads=2, num_kv_heads=2, qk_head_dim=32, v_head_dim=32, rotary_dim=32, theta=1e4
)


def _make(
    num_rows: int,
    num_parts: int,
    shape: _Shape,
    dtype: torch.dtype,
    device: torch.device,
) -> Arguments:
    qkv = torch.randn(num_rows, num_parts, shape.num_columns, device=device)
    num_slots = num_rows + 7
    pools = (
        torch.randn(num_slots, shape.num_kv_heads, width, device=device).to(dtype)
        for width in (shape.qk_head_dim, shape.v_head_dim)
    )
    # Near and as far as the released models go.
    positions = torch.randint(0, 300, (num_rows,))
    positions[::2] = torch.randint(1_000_000, 2**20, (len(positions[::2]),))
    slots = torch.randperm(num_slots)[:num_rows]
    slots[1::5] = -1
    k_pool, v_pool = pools
    return {
        "qkv": qkv.to(dtype) if num_parts == 1 else qkv,
        "positions": positions.to(device),
        "inv_freq": inverse_frequencies(shape.rotary_dim, shape.theta, device),
        "k_pool": k_pool,
        "v_pool": v_pool,
        "slots": slots.to(device),
        "num_heads": shape.num_heads,
        "num_kv_heads": shape.num_kv_heads,
        "qk_head_dim": shape.qk_head_dim,
        "v_head_dim": shape.v_head_dim,
        "value_scale": 0.707,
    }


def _work(arguments: Arguments) -> Work:
    qkv, k_pool = arguments["qkv"], arguments["k_pool"]
    num_rows, _, size = qkv.shape
    return Work(num_bytes=qkv.nbytes + num_rows * size * k_pool.element_size())


def _case(
    num_rows: int,
    num_parts: int,
    shape: _Shape,
    dtype: torch.dtype = torch.bfloat16,
) -> Case:
    is_small = num_rows * num_parts * shape.num_columns <= 2**18
    return Case(
        name=(
            f"{num_rows} rows, {num_parts} parts, heads {shape.num_heads} and "
            f"{shape.num_kv_heads} of {shape.qk_head_dim}, {str(dtype).removeprefix('torch.')}"
        ),
        make=partial(_make, num_rows, num_parts, shape, dtype),
        work=_work if shape in (_FULL, _SLIDING) else None,
        is_small=is_small,
    )


def _triton(**named: Any) -> tuple[torch.Tensor, ...]:
    return triton.rope_and_write(**named), named["k_pool"], named["v_pool"]


def _reference(**named: Any) -> tuple[torch.Tensor, ...]:
    return reference.rope_and_write(**named), named["k_pool"], named["v_pool"]


OP = Op(
    name="rope_and_write",
    reference=_reference,
    triton=_triton,
    cases=(
        _case(1, 1, _DEMO),
        _case(5, 4, _DEMO),
        _case(3, 1, _DEMO, torch.float32),
        _case(6, 3, _ODD, torch.float32),
        _case(70, 2, _ODD),
        _case(9, 1, _ALL_TURN),
        *(
            _case(rows, parts, shape)
            for shape in (_FULL, _SLIDING)
            for rows, parts in ((1, 2), (4, 2), (32, 2), (128, 1), (4096, 1), (32768, 1))
        ),
    ),
    # bfloat16 out: a last bit now and then, where the fused multiplication rounds once less.
    tolerance=1e-3,
)
