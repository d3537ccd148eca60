"""Rows with top_k or top_p: the end of a prefix, and the token drawn from it, without a sort.

Every question is one: which token holds a given place, counted in tokens or in weight, when tokens
stand in falling order of logit. A histogram of the row says which bin of 1/64 octave the token is
in; the bin's tokens are collected, and each of them adds up what stands before it. Where a bin has
more tokens than are compared at once (equal logits, flat rows), halving narrows it first.

The tokens are looked for among those that a first pass listed, or in the whole row where these were
too many to list. Lists are in no certain order; nothing that is read out of them depends on it.
"""

# ruff: noqa: ANN001, ANN201, ANN202 (arguments of kernels have Triton's types)
from __future__ import annotations

import triton
import triton.language as tl

from mimo_engine.kernels.sampling.arithmetic import (
    bin_of,
    distance,
    load_logits,
    logit_of,
    order,
    token_of,
    weight,
)

__all__ = ["MAX_COMPARED", "draw_in_order"]

MAX_COMPARED = 512
"""Tokens of one bin that are compared with each other."""
_MAX_COMPARED = tl.constexpr(MAX_COMPARED)
_BLOCK = tl.constexpr(2048)
_TILE = tl.constexpr(8)
_LAST_Z = tl.constexpr(44 << 26)
"""Weights beyond are 0."""
_NOTHING = tl.constexpr(-0x7F800001 << 32)
"""The `order` of -inf: under that of any token with a weight."""
_LOWEST = tl.constexpr(-(2**63))
_HIGHEST = tl.constexpr(2**63 - 1)


@triton.jit
def _block(
    start, num_entries, list_row, logits_row, mask_row, num_tokens, num_stored,
    HAS_MASK: tl.constexpr, MAX_LISTED: tl.constexpr,
):  # fmt: skip
    """(order, logit) of a block of entries; -inf beyond the last."""
    places = tl.arange(0, _BLOCK) + start
    inside = places < num_entries
    # More entries than a list can have: the row itself.
    num_listed = tl.where(num_entries <= MAX_LISTED, num_entries, 0)
    ids = tl.load(list_row + places, mask=places < num_listed, other=0)
    ids = tl.where(places < num_listed, ids, places)
    x = load_logits(logits_row, mask_row, ids, num_tokens, num_stored, HAS_MASK)
    x = tl.where(inside, x, float("-inf"))
    return order(x, ids), x


@triton.jit
def _collect(
    found_row, wanted_bin, lowest, highest, peak, scale, num_entries, list_row,
    logits_row, mask_row, num_tokens, num_stored, HAS_MASK: tl.constexpr, NUM_BINS: tl.constexpr,
    MAX_LISTED: tl.constexpr,
):  # fmt: skip
    """Write the orders of a bin that lie between two to `found_row`, as many as it holds.

    Returns how many there are, and the lowest and the highest of them.
    """
    num = 0
    first = tl.full((), _HIGHEST, tl.int64)
    last = tl.full((), _LOWEST, tl.int64)
    for start in range(0, num_entries, _BLOCK):
        places, x = _block(
            start,
            num_entries,
            list_row,
            logits_row,
            mask_row,
            num_tokens,
            num_stored,
            HAS_MASK,
            MAX_LISTED,
        )
        z = distance(peak - x, scale)
        is_own = (bin_of(z, NUM_BINS) == wanted_bin) & (z <= _LAST_Z)
        is_own &= (places >= lowest) & (places <= highest)
        ones = is_own.to(tl.int32)
        slots = num + tl.cumsum(ones, axis=0) - 1
        tl.store(found_row + slots, places, mask=is_own & (slots < _MAX_COMPARED))
        num += tl.sum(ones, axis=0)
        first = tl.minimum(first, tl.min(tl.where(is_own, places, _HIGHEST), axis=0))
        last = tl.maximum(last, tl.max(tl.where(is_own, places, _LOWEST), axis=0))
    return num, first, last


@triton.jit
def _halve(
    lowest, highest, peak, scale, num_entries, list_row, logits_row, mask_row,
    num_tokens, num_stored, HAS_MASK: tl.constexpr, MAX_LISTED: tl.constexpr,
):  # fmt: skip
    """Split the tokens whose order lies between two at the middle.

    Returns number and weight of the upper part, its lowest order, and the highest of the lower.
    """
    middle = (lowest & highest) + ((lowest ^ highest) >> 1)
    num = 0
    total = tl.full((), 0, tl.int64)
    lowest_above = highest
    highest_below = lowest
    for start in range(0, num_entries, _BLOCK):
        places, x = _block(
            start,
            num_entries,
            list_row,
            logits_row,
            mask_row,
            num_tokens,
            num_stored,
            HAS_MASK,
            MAX_LISTED,
        )
        is_above = (places > middle) & (places <= highest)
        is_below = (places <= middle) & (places >= lowest)
        num += tl.sum(is_above.to(tl.int32), axis=0)
        total += tl.sum(tl.where(is_above, weight(distance(peak - x, scale)), 0), axis=0)
        lowest_above = tl.minimum(lowest_above, tl.min(tl.where(is_above, places, highest), axis=0))
        highest_below = tl.maximum(
            highest_below, tl.max(tl.where(is_below, places, lowest), axis=0)
        )
    return num, total, lowest_above, highest_below


@triton.jit
def _compare(found_row, num_found, target, is_count, peak, scale):
    """(token, weight up to and with it) at place `target` of the tokens in `found_row`."""
    slots = tl.arange(0, _MAX_COMPARED)
    own = tl.load(found_row + slots, mask=slots < num_found, other=_NOTHING)
    own_weight = weight(distance(peak - logit_of(own), scale))
    weight_before = tl.zeros((_MAX_COMPARED,), tl.int64)
    num_before = tl.zeros((_MAX_COMPARED,), tl.int32)
    for start in range(0, num_found, _TILE):
        others = tl.arange(0, _TILE) + start
        other = tl.load(found_row + others, mask=others < num_found, other=_NOTHING)
        other_weight = weight(distance(peak - logit_of(other), scale))
        is_before = other[:, None] > own[None, :]
        weight_before += tl.sum(tl.where(is_before, other_weight[:, None], 0), axis=0)
        num_before += tl.sum(is_before.to(tl.int32), axis=0)
    before = tl.where(is_count, num_before.to(tl.int64), weight_before)
    after = before + tl.where(is_count, 1, own_weight)
    is_it = (slots < num_found) & (before <= target) & (target < after)
    token = tl.max(tl.where(is_it, token_of(own), -1), axis=0)
    return token, tl.max(tl.where(is_it, weight_before + own_weight, 0), axis=0)


@triton.jit
def _select(
    target, is_count, sums, counts, found_row, peak, scale, num_entries, list_row,
    logits_row, mask_row, num_tokens, num_stored, HAS_MASK: tl.constexpr, NUM_BINS: tl.constexpr,
    MAX_LISTED: tl.constexpr,
):  # fmt: skip
    """(token, weight up to and with it): the first token that more than `target` tokens, or units
    of weight, end at. `sums` (int64) and `counts` (int32) are a histogram's bins."""
    ends = tl.cumsum(tl.where(is_count, counts.to(tl.int64), sums), axis=0)
    own_bin = tl.sum((ends <= target).to(tl.int32), axis=0)
    is_before = tl.arange(0, NUM_BINS) < own_bin
    weight_before = tl.sum(tl.where(is_before, sums, 0), axis=0)
    num_before = tl.sum(tl.where(is_before, counts, 0), axis=0)
    lowest = tl.full((), _LOWEST, tl.int64)
    highest = tl.full((), _HIGHEST, tl.int64)
    num = 0
    # Once, or after halving once more. No loop can fail to end, whatever the memory holds.
    num_tries = 0
    while num_tries < 2:
        num, lowest, highest = _collect(
            found_row, own_bin, lowest, highest, peak, scale, num_entries, list_row, logits_row,
            mask_row, num_tokens, num_stored, HAS_MASK, NUM_BINS, MAX_LISTED,
        )  # fmt: skip
        num_tries = tl.where(num <= _MAX_COMPARED, 2, num_tries + 1)
        num_rounds = 0
        while (num > _MAX_COMPARED) & (num_rounds < 64):
            num_rounds += 1
            num_above, weight_above, lowest_above, highest_below = _halve(
                lowest, highest, peak, scale, num_entries, list_row, logits_row, mask_row,
                num_tokens, num_stored, HAS_MASK, MAX_LISTED,
            )  # fmt: skip
            above = tl.where(is_count, num_before + num_above, weight_before + weight_above)
            is_above = target < above
            num = tl.where(is_above, num_above, num - num_above)
            lowest = tl.where(is_above, lowest_above, lowest)
            highest = tl.where(is_above, highest, highest_below)
            num_before = tl.where(is_above, num_before, num_before + num_above)
            weight_before = tl.where(is_above, weight_before, weight_before + weight_above)
        # What one thread wrote, others read; and must have read before it is written anew.
        tl.debug_barrier()
    before = tl.where(is_count, num_before.to(tl.int64), weight_before)
    num = tl.minimum(num, _MAX_COMPARED)
    token, end = _compare(found_row, num, target - before, is_count, peak, scale)
    tl.debug_barrier()
    return token, weight_before + end


@triton.jit
def draw_in_order(
    number, top_k, top_p, total, sums, counts, found_row, peak, scale, num_entries, list_row,
    logits_row, mask_row, num_tokens, num_stored, HAS_MASK: tl.constexpr, NUM_BINS: tl.constexpr,
    MAX_LISTED: tl.constexpr,
):  # fmt: skip
    """The token of a row with top_k or top_p.

    `total` is the weight of all tokens that min_p left; with top_k it is not read.
    """
    token = tl.full((), -1, tl.int64)
    num_counted = tl.sum(counts, axis=0)
    total = tl.where(top_k > 0, tl.sum(sums, axis=0), total)
    for step in range(3):
        is_count = step == 0
        is_needed = (step == 2) | ((step == 1) & (top_p < 1.0))
        is_needed |= is_count & (top_k > 0) & (num_counted > top_k)
        if is_needed:
            limit = tl.ceil(total.to(tl.float64) * top_p.to(tl.float64)).to(tl.int64)
            drawn = tl.minimum((number * total.to(tl.float64)).to(tl.int64), total - 1)
            target = tl.where(step == 1, tl.maximum(limit, 1) - 1, drawn)
            target = tl.where(is_count, top_k.to(tl.int64) - 1, target)
            token, end = _select(
                target, is_count, sums, counts, found_row, peak, scale, num_entries, list_row,
                logits_row, mask_row, num_tokens, num_stored, HAS_MASK, NUM_BINS, MAX_LISTED,
            )  # fmt: skip
            total = tl.where(step == 2, total, end)
    return token
