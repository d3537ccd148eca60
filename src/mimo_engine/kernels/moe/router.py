"""The router: fp32 logits, then the choice, in a kernel each.

A few tokens have too little work for the whole GPU by experts alone, so columns are dealt too, and
the choice adds up the parts.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

__all__ = ["route"]

_MAX_SINGLE_TOKENS = 4
_MAX_FEW_TOKENS = 256
_MAX_PARTS = 8


@triton.jit
def _logits_of_one(
    x_ptr,
    weight_ptr,
    out_ptr,
    SIZE: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of one token and TILE experts; each weight is read once, by one program a token."""
    token = tl.program_id(1).to(tl.int64)
    experts = tl.program_id(0) * TILE + tl.arange(0, TILE)
    has_expert = experts < NUM_EXPERTS
    total = tl.zeros((TILE, BLOCK), tl.float32)
    for start in range(0, SIZE, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = columns < SIZE
        x = tl.load(x_ptr + token * SIZE + columns, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(
            weight_ptr + experts[:, None] * SIZE + columns[None, :],
            mask=has_expert[:, None] & inside[None, :],
            other=0.0,
        )
        total += w * x[None, :]
    tl.store(out_ptr + token * NUM_EXPERTS + experts, tl.sum(total, axis=1), mask=has_expert)


@triton.jit(do_not_specialize=["num_tokens"])
def _logits_of_some(
    x_ptr,
    weight_ptr,
    out_ptr,
    num_tokens,
    SIZE: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    STEPS: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Of ROWS tokens and TILE experts, over STEPS blocks of columns: one of the parts."""
    tokens = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    experts = tl.program_id(0) * TILE + tl.arange(0, TILE)
    part = tl.program_id(2)
    has_token, has_expert = tokens < num_tokens, experts < NUM_EXPERTS
    rows = tokens.to(tl.int64)[:, None]
    total = tl.zeros((ROWS, TILE), tl.float32)
    for step in range(STEPS):
        columns = (part * STEPS + step) * BLOCK + tl.arange(0, BLOCK)
        inside = columns < SIZE
        x = tl.load(
            x_ptr + rows * SIZE + columns[None, :],
            mask=has_token[:, None] & inside[None, :],
            other=0.0,
        )
        w = tl.load(
            weight_ptr + experts[None, :] * SIZE + columns[:, None],
            mask=has_expert[None, :] & inside[:, None],
            other=0.0,
        )
        # Three bfloat16 numbers are a float32 one, and x is one: so products are exact, as rounding
        # must not choose experts.
        high = w.to(tl.bfloat16)
        rest = w - high.to(tl.float32)
        middle = rest.to(tl.bfloat16)
        low = (rest - middle.to(tl.float32)).to(tl.bfloat16)
        total = tl.dot(x, high, total)
        total = tl.dot(x, middle, total)
        total = tl.dot(x, low, total)
    place = out_ptr + (part * num_tokens + rows) * NUM_EXPERTS
    tl.store(place + experts[None, :], total, mask=has_token[:, None] & has_expert[None, :])


@triton.jit(do_not_specialize=["part_stride"])
def _choose(
    logits_ptr,
    bias_ptr,
    expert_ptr,
    weight_ptr,
    scaling_factor,
    part_stride,
    NUM_PARTS: tl.constexpr,
    NUM_EXPERTS: tl.constexpr,
    TOP_K: tl.constexpr,
    NORMALISES: tl.constexpr,
    BLOCK: tl.constexpr,
    SLOTS: tl.constexpr,
):
    """One token: the best TOP_K one after the other; of equal ones the lowest."""
    token = tl.program_id(0).to(tl.int64)
    experts = tl.arange(0, BLOCK)
    inside = experts < NUM_EXPERTS
    logits = tl.zeros((BLOCK,), tl.float32)
    for part in tl.static_range(NUM_PARTS):
        own = logits_ptr + part * part_stride + token * NUM_EXPERTS
        logits += tl.load(own + experts, mask=inside, other=0.0)
    scores = 1 / (1 + tl.exp(-logits))
    left = tl.where(inside, scores + tl.load(bias_ptr + experts, mask=inside, other=0.0), -1e30)
    slots = tl.arange(0, SLOTS)
    chosen = tl.zeros((SLOTS,), tl.int32)
    weights = tl.zeros((SLOTS,), tl.float32)
    for slot in tl.static_range(TOP_K):
        best = tl.argmax(left, axis=0, tie_break_left=True)
        weight = tl.sum(tl.where(experts == best, scores, 0.0), axis=0)
        chosen = tl.where(slots == slot, best, chosen)
        weights = tl.where(slots == slot, weight, weights)
        left = tl.where(experts == best, -2e30, left)
    if NORMALISES:
        weights = weights / (tl.sum(weights, axis=0) + 1e-20)
    tl.store(expert_ptr + token * TOP_K + slots, chosen, mask=slots < TOP_K)
    tl.store(weight_ptr + token * TOP_K + slots, weights * scaling_factor, mask=slots < TOP_K)


def route(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    top_k: int,
    norm_topk_prob: bool,
    scaling_factor: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package; experts are int32."""
    assert weight.dtype is bias.dtype is torch.float32
    assert x.is_contiguous()
    assert x.dtype is torch.bfloat16
    num_tokens, num_experts = x.shape[0], weight.shape[0]
    logits = _logits(x, weight)
    chosen = torch.empty(num_tokens, top_k, dtype=torch.int32, device=x.device)
    weights = torch.empty(num_tokens, top_k, dtype=torch.float32, device=x.device)
    _choose[(num_tokens,)](
        logits,
        bias,
        chosen,
        weights,
        scaling_factor,
        num_tokens * num_experts,
        NUM_PARTS=logits.shape[0],
        NUM_EXPERTS=num_experts,
        TOP_K=top_k,
        NORMALISES=norm_topk_prob,
        BLOCK=triton.next_power_of_2(num_experts),
        SLOTS=triton.next_power_of_2(top_k),
        num_warps=1,
    )
    return chosen, weights


def _logits(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """[S, N, E] fp32: parts to be added up."""
    num_tokens, size = x.shape
    num_experts = weight.shape[0]
    if num_tokens <= _MAX_SINGLE_TOKENS:
        logits = torch.empty(1, num_tokens, num_experts, dtype=torch.float32, device=x.device)
        # A program's loads are all under way at once.
        block = min(4096, triton.next_power_of_2(size))
        _logits_of_one[(num_experts, num_tokens)](
            x, weight, logits, SIZE=size, NUM_EXPERTS=num_experts, TILE=1, BLOCK=block, num_warps=4
        )
        return logits
    is_many = num_tokens > _MAX_FEW_TOKENS
    rows, tile, block = (64, 64, 32) if is_many else (16, 16, 64)
    num_blocks = triton.cdiv(size, block)
    num_parts = 1 if is_many else min(_MAX_PARTS, num_blocks)
    logits = torch.empty(num_parts, num_tokens, num_experts, dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(num_experts, tile), triton.cdiv(num_tokens, rows), num_parts)
    _logits_of_some[grid](
        x, weight, logits, num_tokens, SIZE=size, NUM_EXPERTS=num_experts,
        STEPS=triton.cdiv(num_blocks, num_parts), ROWS=rows, TILE=tile, BLOCK=block, num_warps=4,
        num_stages=4,
    )  # fmt: skip
    return logits
