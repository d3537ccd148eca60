"""One launch: a program takes some heads of one row, and what a head is decides what it becomes.

Heads of Q and K lie one after the other and rotate alike; only where they go differs. The rotated
dims are few, so a program has three pieces of each head: first halves, second halves, the rest.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl

__all__ = ["rope_and_write"]

_HALF_PI = tl.constexpr(math.pi / 2)
_PER_RADIAN = tl.constexpr(2 / math.pi)
_MAX_SMALL_BATCH = 64
"""Rows up to which there are too few programs to be wasteful: they take fewer heads each."""


@triton.jit
def _cos_and_sin(angle):
    """Of any fp32 angle, to its last bits. Quarter turns are taken away in float64: at position 1e6
    an angle has 160,000 turns. What is left is at most an eighth of one, where the Taylor series
    needs five terms."""
    exact = angle.to(tl.float64)
    quarters = tl.floor(exact * _PER_RADIAN + 0.5)
    x = (exact - quarters * _HALF_PI).to(tl.float32)
    y = x * x
    cos = 1 + y * (-1 / 2 + y * (1 / 24 + y * (-1 / 720 + y * (1 / 40320 - y / 3628800))))
    sin = x + x * y * (-1 / 6 + y * (1 / 120 + y * (-1 / 5040 + y / 362880)))
    quadrant = quarters.to(tl.int32) & 3
    is_odd = (quadrant & 1) == 1
    first, second = tl.where(is_odd, sin, cos), tl.where(is_odd, cos, sin)
    is_left, is_low = (quadrant == 1) | (quadrant == 2), quadrant >= 2
    return tl.where(is_left, -first, first), tl.where(is_low, -second, second)


@triton.jit
def _summed(ptr, mask, dtype: tl.constexpr, SIZE: tl.constexpr, NUM_PARTS: tl.constexpr):
    """fp32 sum of the parts of one row, SIZE apart, rounded to dtype."""
    total = tl.load(ptr, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, NUM_PARTS):
        total += tl.load(ptr + part * SIZE, mask=mask, other=0.0).to(tl.float32)
    return total.to(dtype).to(tl.float32)


@triton.jit
def _store_head(q_ptr, k_ptr, place, value, inside, heads, NUM_HEADS: tl.constexpr):
    """To q where the head is a query's, to the pool where it is a key's."""
    value = value.to(k_ptr.dtype.element_ty)
    tl.store(q_ptr + place, value, mask=inside & (heads < NUM_HEADS)[:, None])
    tl.store(k_ptr + place, value, mask=inside & (heads >= NUM_HEADS)[:, None])


@triton.jit
def _rotate(
    own_ptr,
    q_ptr,
    k_ptr,
    angles,
    heads,
    num_stored,
    NUM_PARTS: tl.constexpr,
    SIZE: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    DK: tl.constexpr,
    HALF: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """The first `num_stored` heads of Q and K, counted together. own_ptr: the row's first part;
    q_ptr and k_ptr: where head 0 would stand, had it its place there."""
    HALF_BLOCK: tl.constexpr = angles.shape[0]
    dtype: tl.constexpr = k_ptr.dtype.element_ty
    cos, sin = _cos_and_sin(angles)
    cos, sin = cos[None, :], sin[None, :]
    columns = tl.arange(0, HALF_BLOCK)[None, :]
    has_head = (heads < num_stored)[:, None]
    inside = has_head & (columns < HALF)
    place = heads[:, None] * DK + columns
    first = _summed(own_ptr + place, inside, dtype, SIZE, NUM_PARTS)
    second = _summed(own_ptr + place + HALF, inside, dtype, SIZE, NUM_PARTS)
    turned = first * cos - second * sin
    _store_head(q_ptr, k_ptr, place, turned, inside, heads, NUM_HEADS)
    turned = second * cos + first * sin
    _store_head(q_ptr, k_ptr, place + HALF, turned, inside, heads, NUM_HEADS)
    REST: tl.constexpr = DK - 2 * HALF
    if REST > 0:
        columns = tl.arange(0, REST_BLOCK)[None, :]
        inside = has_head & (columns < REST)
        place = heads[:, None] * DK + 2 * HALF + columns
        rest = _summed(own_ptr + place, inside, dtype, SIZE, NUM_PARTS)
        _store_head(q_ptr, k_ptr, place, rest, inside, heads, NUM_HEADS)


# Positions and slots are parts of larger tensors: no code of its own where they begin oddly.
@triton.jit(do_not_specialize_on_alignment=["position_ptr", "slot_ptr"])
def _rope_and_write(
    qkv_ptr,
    position_ptr,
    inv_freq_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    slot_ptr,
    VALUE_SCALE: tl.constexpr,
    NUM_PARTS: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    DK: tl.constexpr,
    DV: tl.constexpr,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
    DV_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
):
    NUM_ALL: tl.constexpr = NUM_HEADS + NUM_KV_HEADS
    SIZE: tl.constexpr = NUM_ALL * DK + NUM_KV_HEADS * DV
    NUM_ROTATED: tl.constexpr = (NUM_ALL + HEADS - 1) // HEADS
    row = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    slot = tl.load(slot_ptr + row)
    own = qkv_ptr + row * (NUM_PARTS * SIZE)
    if block < NUM_ROTATED:
        heads = block * HEADS + tl.arange(0, HEADS)
        pair = tl.arange(0, HALF_BLOCK)
        inv_freq = tl.load(inv_freq_ptr + pair, mask=pair < HALF, other=0.0)
        angles = tl.load(position_ptr + row).to(tl.float32) * inv_freq
        q_own = q_ptr + row * (NUM_HEADS * DK)
        k_own = k_ptr + (slot * (NUM_KV_HEADS * DK) - NUM_HEADS * DK)
        num_stored = tl.where(slot >= 0, NUM_ALL, NUM_HEADS)
        _rotate(
            own, q_own, k_own, angles, heads, num_stored, NUM_PARTS, SIZE, NUM_HEADS, DK, HALF,
            REST_BLOCK,
        )  # fmt: skip
    else:
        heads = (block - NUM_ROTATED) * HEADS + tl.arange(0, HEADS)
        columns = tl.arange(0, DV_BLOCK)[None, :]
        num_stored = tl.where(slot >= 0, NUM_KV_HEADS, 0)
        inside = (heads < num_stored)[:, None] & (columns < DV)
        place = heads[:, None] * DV + columns
        dtype: tl.constexpr = v_ptr.dtype.element_ty
        v = _summed(own + NUM_ALL * DK + place, inside, dtype, SIZE, NUM_PARTS) * VALUE_SCALE
        tl.store(v_ptr + slot * (NUM_KV_HEADS * DV) + place, v.to(dtype), mask=inside)


def rope_and_write(
    qkv: torch.Tensor,
    positions: torch.Tensor,
    inv_freq: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    slots: torch.Tensor,
    *,
    num_heads: int,
    num_kv_heads: int,
    qk_head_dim: int,
    v_head_dim: int,
    value_scale: float,
) -> torch.Tensor:
    """See the package."""
    num_rows, num_parts, size = qkv.shape
    num_all = num_heads + num_kv_heads
    assert size == num_all * qk_head_dim + num_kv_heads * v_head_dim
    assert all(tensor.is_contiguous() for tensor in (qkv, k_pool, v_pool, inv_freq))
    assert k_pool.shape[1:] == (num_kv_heads, qk_head_dim)
    assert v_pool.shape[1:] == (num_kv_heads, v_head_dim)
    assert positions.shape == slots.shape == (num_rows,)
    half = inv_freq.shape[0]
    q = torch.empty(num_rows, num_heads, qk_head_dim, dtype=k_pool.dtype, device=qkv.device)
    heads = 4 if num_rows <= _MAX_SMALL_BATCH else 16
    num_blocks = triton.cdiv(num_all, heads) + triton.cdiv(num_kv_heads, heads)
    _rope_and_write[(num_rows, num_blocks)](
        qkv,
        positions,
        inv_freq,
        q,
        k_pool,
        v_pool,
        slots,
        VALUE_SCALE=value_scale,
        NUM_PARTS=num_parts,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        DK=qk_head_dim,
        DV=v_head_dim,
        HALF=half,
        HALF_BLOCK=triton.next_power_of_2(half),
        REST_BLOCK=triton.next_power_of_2(max(1, qk_head_dim - 2 * half)),
        DV_BLOCK=triton.next_power_of_2(v_head_dim),
        HEADS=heads,
        num_warps=4,
    )
    return q
