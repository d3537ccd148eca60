"""Attention over a pool of keys and values: windows, sinks, K and V of different width.

One definition serves both forwards. With a cache, a pool is a layer's paged K or V and the slots
come from page tables; without one (training, tests), the pool is the batch's own k or v and a slot
is a row of the batch. This is the plain PyTorch reference, softmax in fp32, differentiable.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

from mimo_engine.kernels.attention.rows import PagedRows

__all__ = ["AttentionGroup", "attention", "packed_groups", "paged_attention", "write_kv"]

# Scores of one block of query rows, in elements: bounds the memory of a long prefill.
_MAX_SCORE_ELEMENTS = 1 << 25
# With a window, a block of more rows would mostly score what it does not see.
_MAX_WINDOW_BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionGroup:
    """G sequences with n query rows each, attended in one batched product. All int64.

    Decode rows of a step form one group (n = 1); each prompt chunk is a group of its own (G = 1).
    """

    rows: torch.Tensor
    """[G, n] batch rows; consecutive positions along n."""
    first_position: torch.Tensor
    """[G] position of rows[:, 0]."""
    kv_slots: torch.Tensor
    """[G, L] pool slot of the key at position kv_first + l; any valid one where none is visible."""
    kv_first: torch.Tensor
    """[G] position of kv_slots[:, 0]; negative positions are never visible."""


def attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    groups: Sequence[AttentionGroup],
    *,
    num_visible_tokens: int | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """Softmax attention, scale 1/sqrt(Dk) (text.md 2.2, steps 4 to 7).

    q [N, Hq, Dk]; k_pool [slots, Hkv, Dk]; v_pool [slots, Hkv, Dv]; Hq a multiple of Hkv, query
    head h reads KV head h // (Hq / Hkv). The query at position p sees keys at positions
    max(0, p - num_visible_tokens + 1) ... p (None: 0 ... p). sink [Hq] is a logit in the
    denominator, unscaled, without a value. Returns [N, Hq, Dv] in q's dtype; every row of the batch
    must stand in exactly one group.
    """
    out = q.new_empty(q.shape[0], q.shape[1], v_pool.shape[-1])
    for group in groups:
        k = k_pool[group.kv_slots]
        v = v_pool[group.kv_slots]
        num_sequences, num_rows = group.rows.shape
        per_row = num_sequences * q.shape[1] * group.kv_slots.shape[1]
        block = max(1, _MAX_SCORE_ELEMENTS // max(1, per_row))
        kv_position = group.kv_first[:, None] + torch.arange(k.shape[1], device=q.device)
        for start in range(0, num_rows, block):
            rows = group.rows[:, start : start + block]
            offsets = torch.arange(start, start + rows.shape[1], device=q.device)
            q_position = group.first_position[:, None] + offsets
            visible = _visible(q_position, kv_position, num_visible_tokens)
            out[rows] = _attend(q[rows], k, v, visible, sink)
    return out


def _visible(
    q_position: torch.Tensor, kv_position: torch.Tensor, num_visible_tokens: int | None
) -> torch.Tensor:
    """[G, n] and [G, L] positions to a [G, n, L] mask; the window includes the query itself."""
    distance = q_position[:, :, None] - kv_position[:, None, :]
    visible = (distance >= 0) & (kv_position >= 0)[:, None, :]
    if num_visible_tokens is not None:
        visible &= distance < num_visible_tokens
    return visible


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """q [G, n, Hq, Dk], k [G, L, Hkv, Dk], v [G, L, Hkv, Dv], visible [G, n, L].

    Returns [G, n, Hq, Dv].
    """
    num_sequences, num_rows, num_heads, head_dim = q.shape
    num_kv_heads = k.shape[2]
    ratio = num_heads // num_kv_heads
    q = q.view(num_sequences, num_rows, num_kv_heads, ratio, head_dim).permute(0, 2, 3, 1, 4)
    scores = torch.matmul(q, k.permute(0, 2, 3, 1)[:, :, None]).float() * head_dim**-0.5
    scores = scores.masked_fill(~visible[:, None, None], float("-inf"))
    if sink is not None:
        column = sink.float().view(1, num_kv_heads, ratio, 1, 1)
        column = column.expand(num_sequences, -1, -1, num_rows, 1)
        weights = torch.cat((scores, column), dim=-1).softmax(dim=-1)[..., :-1]
    else:
        weights = scores.softmax(dim=-1)
    out = torch.matmul(weights.to(v.dtype), v.permute(0, 2, 1, 3)[:, :, None])
    return out.permute(0, 3, 1, 2, 4).reshape(num_sequences, num_rows, num_heads, v.shape[-1])


def write_kv(
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    slots: torch.Tensor,
) -> None:
    """In place: pool[slots[i]] = row i. k [N, Hkv, Dk], v [N, Hkv, Dv]; slots [N] distinct."""
    k_pool[slots] = k.to(k_pool.dtype)
    v_pool[slots] = v.to(v_pool.dtype)


def packed_groups(
    lengths: Sequence[int], device: torch.device | str = "cpu"
) -> list[AttentionGroup]:
    """Groups for whole sequences laid end to end in a batch, each attending to itself alone.

    Sequences of one length share a group. For the cacheless forward.
    """
    starts: dict[int, list[int]] = {}
    row = 0
    for length in lengths:
        starts.setdefault(length, []).append(row)
        row += length
    groups = []
    for length, first_rows in starts.items():
        rows = torch.tensor(first_rows, device=device)[:, None] + torch.arange(
            length, device=device
        )
        zeros = torch.zeros(len(first_rows), dtype=torch.int64, device=device)
        groups.append(
            AttentionGroup(rows=rows, first_position=zeros, kv_slots=rows, kv_first=zeros)
        )
    return groups


def paged_attention(
    q: torch.Tensor,
    k_pool: torch.Tensor,
    v_pool: torch.Tensor,
    rows: PagedRows,
    *,
    num_visible_tokens: int | None,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """See the package. All in fp32 and one rounding. Sequences go one by one, their rows in blocks;
    the tables are read on the host."""
    out = q.new_zeros(q.shape[0], q.shape[1], v_pool.shape[-1])
    first_rows, positions = rows.first_row.tolist(), rows.first_position.tolist()
    ends = (rows.last_position + 1).tolist()
    for s, (first, last) in enumerate(pairwise(first_rows)):
        shift = positions[s] - first  # from batch rows to positions
        widest = last + shift
        if num_visible_tokens is not None:
            widest = min(widest, num_visible_tokens + _MAX_WINDOW_BLOCK)
        block = max(1, _MAX_SCORE_ELEMENTS // max(1, q.shape[1] * widest))
        if num_visible_tokens is not None:
            block = min(block, _MAX_WINDOW_BLOCK)
        for start in range(first, last, block):
            own = slice(start, min(start + block, last))
            low = max(0, int(rows.visible_from[s]))
            if num_visible_tokens is not None:
                low = max(low, min(start + shift, ends[s] - 1) - num_visible_tokens + 1)
            end = min(own.stop + shift, ends[s])
            if end <= low:
                continue  # nothing is visible
            position = torch.arange(own.start, own.stop, device=q.device) + shift
            position = position.clamp(max=ends[s] - 1)
            keys = torch.arange(low, end, device=q.device)
            pages = rows.page_table[s][keys // rows.page_size].long()
            slots = pages * rows.page_size + keys % rows.page_size
            visible = _visible(position[None], keys[None], num_visible_tokens)[0]
            out[own] = _attend_exactly(q[own], k_pool[slots], v_pool[slots], visible, sink)
    return out


def _attend_exactly(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    visible: torch.Tensor,
    sink: torch.Tensor | None,
) -> torch.Tensor:
    """q [n, Hq, Dk], k [L, Hkv, Dk], v [L, Hkv, Dv], visible [n, L]; 0 where nothing is visible.

    Returns [n, Hq, Dv].
    """
    num_rows, _, head_dim = q.shape
    # [Hkv, n * Hq / Hkv, Dk]: the heads that read the same keys, together.
    grouped = q.float().view(num_rows, k.shape[1], -1, head_dim).transpose(0, 1).flatten(1, 2)
    scores = torch.matmul(grouped, k.float().permute(1, 2, 0)) * head_dim**-0.5
    scores = scores.view(k.shape[1], num_rows, -1, k.shape[0])
    scores.masked_fill_(~visible[:, None], float("-inf"))
    column = None if sink is None else sink.float().view(k.shape[1], 1, -1, 1)
    peak = scores.amax(dim=-1, keepdim=True)
    peak = peak if column is None else torch.maximum(peak, column)
    peak = peak.clamp(min=torch.finfo(torch.float32).min)  # -inf - -inf would be no number
    weights = scores.sub_(peak).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    total = total if column is None else total + torch.exp(column - peak)
    out = torch.matmul(weights.flatten(1, 2), v.float().transpose(0, 1))
    out = out.view(k.shape[1], num_rows, -1, v.shape[-1]) / total.where(total > 0, 1.0)
    return out.transpose(0, 1).flatten(1, 2).to(q.dtype)
