"""Three launches, whatever the rows ask for; what a row does not need ends after a few loads.

1. `_survey` reads all logits once: of each chunk of 1024 tokens the largest logit, and the sum of
   weights measured from it.
2. `_narrow` ends at once but for rows with filters. With min_p alone it sums the chunks again,
   without what is cut. With top_k or top_p it reads the row once more: a histogram of weights (and
   of counts, for top_k) by distance from the largest, by atomic adds of integers, and a list of the
   tokens that may be kept. Bounds that cost little leave out the rest: the k-th largest of the
   chunks' maxima, and for top_p the weight that all tokens together could have and still miss.
3. `_choose`, a program a row: greedy rows look up the first largest logit; rows without order find
   their chunk by the shares and the token by a scan of 1024; the others are select.py's.

A row is spread over as many programs as there are chunks, or fewer where there are many rows; sums
of integers do not mind. Expected on an H100, by arithmetic and not yet measured: a row alone takes
4 + 1.5 + 4 us greedy or by temperature, 4 + 6 + 14 us with filters; 128 rows of 152k float32 logits
some 40 us and 90 us, of which the logits' bytes are 25 us a reading. A row of a flat distribution
with a wide top_p, tens of thousands of tokens kept, takes 50 to 100 us more in `_choose`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from mimo_engine.kernels.sampling.arithmetic import (
    bin_of,
    distance,
    is_greedy,
    least_weight,
    load_logits,
    row_scale,
    share,
    uniform,
    weight,
)
from mimo_engine.kernels.sampling.params import CHUNK, RowParams, check
from mimo_engine.kernels.sampling.select import MAX_COMPARED, draw_in_order

__all__ = ["accept_drafts", "sample_rows"]

_CHUNK = tl.constexpr(CHUNK)
_TILE = tl.constexpr(8)
_UNIT = tl.constexpr(2.0**44)
_NUM_BINS = 2048
"""Of 1/64 octave: 32 octaves, and the last has the rest."""
_MAX_LISTED = 8192
"""Tokens of a row that may be kept; of more none is listed."""
_WANTED_PROGRAMS = 2048


@triton.jit
def _survey(
    logits_ptr, mask_ptr, temperature_ptr, top_k_ptr, top_p_ptr, peak_ptr, sum_ptr, bin_sum_ptr,
    bin_count_ptr, total_ptr, num_listed_ptr, row_stride, mask_stride, num_tokens, num_stored,
    num_chunks, HAS_MASK: tl.constexpr, NUM_BINS: tl.constexpr,
):  # fmt: skip
    """peak, sum [R, C] of each chunk; what `_narrow` adds to is set to 0 for rows that need it."""
    row = tl.program_id(1).to(tl.int64)
    first, step = tl.program_id(0), tl.num_programs(0)
    temperature = tl.load(temperature_ptr + row)
    is_drawn = is_greedy(temperature) == 0
    scale = row_scale(temperature)
    if is_drawn & ((tl.load(top_k_ptr + row) > 0) | (tl.load(top_p_ptr + row) < 1.0)):
        for start in range(first * _CHUNK, NUM_BINS, step * _CHUNK):
            bins = row * NUM_BINS + tl.arange(0, _CHUNK) + start
            tl.store(bin_sum_ptr + bins, tl.zeros((_CHUNK,), tl.int64))
            tl.store(bin_count_ptr + bins, tl.zeros((_CHUNK,), tl.int32))
        if first == 0:
            tl.store(total_ptr + row, tl.full((), 0, tl.int64))
            tl.store(num_listed_ptr + row, 0)
    for chunk in range(first, num_chunks, step):
        x = load_logits(
            logits_ptr + row * row_stride, mask_ptr + row * mask_stride,
            tl.arange(0, _CHUNK) + chunk * _CHUNK, num_tokens, num_stored, HAS_MASK,
        )  # fmt: skip
        peak = tl.max(x, axis=0)
        tl.store(peak_ptr + row * num_chunks + chunk, peak)
        if is_drawn:
            base = tl.where(tl.abs(peak) < float("inf"), peak, 0.0)
            total = tl.sum(weight(distance(base - x, scale)), axis=0)
            tl.store(sum_ptr + row * num_chunks + chunk, total)


@triton.jit
def _floor(peaks, peak_row, num_chunks, top_k, BLOCK: tl.constexpr):
    """A logit that the first `top_k` tokens reach: the top_k-th largest of the chunks' `peaks`."""
    num_greater = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, num_chunks, _TILE):
        places = tl.arange(0, _TILE) + start
        others = tl.load(peak_row + places, mask=places < num_chunks, other=float("-inf"))
        num_greater += tl.sum((others[:, None] > peaks[None, :]).to(tl.int32), axis=0)
    is_first = (num_greater < top_k) & (tl.arange(0, BLOCK) < num_chunks)
    floor = tl.min(tl.where(is_first, peaks, float("inf")), axis=0)
    return tl.where(top_k > num_chunks, float("-inf"), floor)


@triton.jit
def _narrow(
    logits_ptr, mask_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, peak_ptr, sum_ptr,
    bin_sum_ptr, bin_count_ptr, total_ptr, num_listed_ptr, list_ptr, row_stride, mask_stride,
    num_tokens, num_stored, num_chunks, HAS_MASK: tl.constexpr, NUM_BINS: tl.constexpr,
    MAX_LISTED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(1).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    min_p = tl.load(min_p_ptr + row)
    is_ordered = (top_k > 0) | (top_p < 1.0)
    if is_greedy(temperature) | ((is_ordered == 0) & (min_p <= 0.0)):
        return
    chunks = tl.arange(0, BLOCK)
    peak_row = peak_ptr + row * num_chunks
    peaks = tl.load(peak_row + chunks, mask=chunks < num_chunks, other=float("-inf"))
    peak = tl.max(peaks, axis=0)
    if tl.abs(peak) == float("inf"):
        return
    scale = row_scale(temperature)
    least = least_weight(min_p)
    logits_row, mask_row = logits_ptr + row * row_stride, mask_ptr + row * mask_stride
    if is_ordered:
        least = tl.maximum(least, 1)
        floor = tl.full((), float("-inf"), tl.float32)
        # All tokens under this weight have less than 1 - top_p of the least sum there can be,
        # which is the largest weight; a tenth is left for rounding.
        least_kept = (1.0 - top_p.to(tl.float64)) * (0.9 * _UNIT) / num_tokens
        least_kept = tl.where(top_k > 0, 0.0, least_kept).to(tl.int64)
        if top_k > 0:
            floor = _floor(peaks, peak_row, num_chunks, top_k, BLOCK)
        _add_up(
            logits_row, mask_row, peak, scale, least, tl.maximum(least, least_kept), floor, top_k,
            bin_sum_ptr + row * NUM_BINS, bin_count_ptr + row * NUM_BINS, total_ptr + row,
            num_listed_ptr + row, list_ptr + row * MAX_LISTED, num_tokens, num_stored,
            num_chunks, HAS_MASK, NUM_BINS, MAX_LISTED,
        )  # fmt: skip
    else:
        for chunk in range(tl.program_id(0), num_chunks, tl.num_programs(0)):
            ids = tl.arange(0, _CHUNK) + chunk * _CHUNK
            x = load_logits(logits_row, mask_row, ids, num_tokens, num_stored, HAS_MASK)
            weights = _chunk_weights(x, tl.load(peak_row + chunk), peak, scale, least)
            tl.store(sum_ptr + row * num_chunks + chunk, tl.sum(weights, axis=0))


@triton.jit
def _chunk_weights(x, chunk_peak, peak, scale, least):
    """Weights measured from the chunk's peak, of what min_p leaves."""
    base = tl.where(tl.abs(chunk_peak) < float("inf"), chunk_peak, 0.0)
    is_kept = weight(distance(peak - x, scale)) >= least
    return tl.where(is_kept, weight(distance(base - x, scale)), 0)


@triton.jit
def _add_up(
    logits_row, mask_row, peak, scale, least, least_kept, floor, top_k, bin_sum_row, bin_count_row,
    total_ptr, num_listed_ptr, list_row, num_tokens, num_stored, num_chunks, HAS_MASK: tl.constexpr,
    NUM_BINS: tl.constexpr, MAX_LISTED: tl.constexpr,
):  # fmt: skip
    """Sum the weights from `least` on; list and count the tokens from both other bounds on."""
    total = tl.full((), 0, tl.int64)
    for chunk in range(tl.program_id(0), num_chunks, tl.num_programs(0)):
        ids = tl.arange(0, _CHUNK) + chunk * _CHUNK
        x = load_logits(logits_row, mask_row, ids, num_tokens, num_stored, HAS_MASK)
        z = distance(peak - x, scale)
        weights = weight(z)
        total += tl.sum(tl.where(weights >= least, weights, 0), axis=0)
        is_own = (weights >= least_kept) & (x >= floor)
        ones = is_own.to(tl.int32)
        num = tl.sum(ones, axis=0)
        if num > 0:
            bins = bin_of(z, NUM_BINS)
            tl.atomic_add(bin_sum_row + bins, weights, mask=is_own, sem="relaxed")
            if top_k > 0:
                tl.atomic_add(bin_count_row + bins, ones, mask=is_own, sem="relaxed")
            slots = tl.atomic_add(num_listed_ptr, num, sem="relaxed") + tl.cumsum(ones, axis=0) - 1
            tl.store(list_row + slots, ids, mask=is_own & (slots < MAX_LISTED))
    tl.atomic_add(total_ptr, total, sem="relaxed")


@triton.jit
def _by_chunk(
    peaks, peak, sum_row, logits_row, mask_row, scale, least, number, num_tokens, num_stored,
    num_chunks, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The token of a row without order: its chunk by the shares, then a scan."""
    chunks = tl.arange(0, BLOCK)
    sums = tl.load(sum_row + chunks, mask=chunks < num_chunks, other=0)
    shares = share(sums, distance(peak - peaks, scale))
    ends = tl.cumsum(shares, axis=0)
    total = tl.sum(shares, axis=0)
    target = tl.minimum((number * total.to(tl.float64)).to(tl.int64), total - 1)
    chunk = tl.sum((ends <= target).to(tl.int32), axis=0)
    is_it = chunks == chunk
    own = tl.sum(tl.where(is_it, sums, 0), axis=0)
    own_share = tl.sum(tl.where(is_it, shares, 0), axis=0)
    within = target - tl.sum(tl.where(chunks < chunk, shares, 0), axis=0)
    # The middle of the cell of the share, in the chunk's own scale.
    middle = (within.to(tl.float64) + 0.5) / own_share.to(tl.float64) * own.to(tl.float64)
    target = tl.minimum(middle.to(tl.int64), own - 1)
    x = load_logits(
        logits_row,
        mask_row,
        tl.arange(0, _CHUNK) + chunk * _CHUNK,
        num_tokens,
        num_stored,
        HAS_MASK,
    )
    chunk_peak = tl.max(tl.where(is_it, peaks, float("-inf")), axis=0)
    ends = tl.cumsum(_chunk_weights(x, chunk_peak, peak, scale, least), axis=0)
    return (tl.sum((ends <= target).to(tl.int32), axis=0) + chunk * _CHUNK).to(tl.int64)


@triton.jit
def _first_largest(
    peaks,
    peak,
    logits_row,
    mask_row,
    num_tokens,
    num_stored,
    HAS_MASK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    chunk = tl.min(tl.where(peaks == peak, tl.arange(0, BLOCK), BLOCK - 1), axis=0)
    ids = tl.arange(0, _CHUNK) + chunk * _CHUNK
    x = load_logits(logits_row, mask_row, ids, num_tokens, num_stored, HAS_MASK)
    return tl.min(tl.where(x == peak, ids, num_tokens - 1), axis=0).to(tl.int64)


@triton.jit
def _choose(
    logits_ptr, mask_ptr, temperature_ptr, top_k_ptr, top_p_ptr, min_p_ptr, seed_ptr, index_ptr,
    peak_ptr, sum_ptr, bin_sum_ptr, bin_count_ptr, total_ptr, num_listed_ptr, list_ptr, found_ptr,
    token_ptr, row_stride, mask_stride, num_tokens, num_stored, num_chunks, HAS_MASK: tl.constexpr,
    NUM_BINS: tl.constexpr, MAX_LISTED: tl.constexpr, MAX_FOUND: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    chunks = tl.arange(0, BLOCK)
    peaks = tl.load(
        peak_ptr + row * num_chunks + chunks, mask=chunks < num_chunks, other=float("-inf")
    )
    peak = tl.max(peaks, axis=0)
    temperature = tl.load(temperature_ptr + row)
    top_k, top_p = tl.load(top_k_ptr + row), tl.load(top_p_ptr + row)
    scale = row_scale(temperature)
    number = uniform(tl.load(seed_ptr + row), tl.load(index_ptr + row))
    logits_row, mask_row = logits_ptr + row * row_stride, mask_ptr + row * mask_stride
    token = tl.full((), -1, tl.int64)
    if tl.abs(peak) < float("inf"):
        if is_greedy(temperature):
            token = _first_largest(
                peaks, peak, logits_row, mask_row, num_tokens, num_stored, HAS_MASK, BLOCK
            )
        elif (top_k > 0) | (top_p < 1.0):
            bins = row * NUM_BINS + tl.arange(0, NUM_BINS)
            num_listed = tl.load(num_listed_ptr + row)
            num_entries = tl.where(num_listed <= MAX_LISTED, num_listed, num_tokens)
            token = draw_in_order(
                number, top_k, top_p, tl.load(total_ptr + row), tl.load(bin_sum_ptr + bins),
                tl.load(bin_count_ptr + bins), found_ptr + row * MAX_FOUND, peak, scale,
                num_entries, list_ptr + row * MAX_LISTED, logits_row, mask_row, num_tokens,
                num_stored, HAS_MASK, NUM_BINS, MAX_LISTED,
            )  # fmt: skip
        else:
            token = _by_chunk(
                peaks, peak, sum_ptr + row * num_chunks, logits_row, mask_row, scale,
                least_weight(tl.load(min_p_ptr + row)), number, num_tokens, num_stored,
                num_chunks, HAS_MASK, BLOCK,
            )  # fmt: skip
    tl.store(token_ptr + row, token)


def sample_rows(logits: torch.Tensor, params: RowParams) -> torch.Tensor:
    """See the package."""
    check(logits, params)
    num_rows, num_tokens = logits.shape[0], params.num_live_tokens
    num_stored, num_chunks = logits.shape[1], triton.cdiv(num_tokens, CHUNK)
    device = logits.device
    peaks = torch.empty(num_rows, num_chunks, dtype=torch.float32, device=device)
    sums = torch.empty(num_rows, num_chunks, dtype=torch.int64, device=device)
    bin_sums = torch.empty(num_rows, _NUM_BINS, dtype=torch.int64, device=device)
    bin_counts = torch.empty(num_rows, _NUM_BINS, dtype=torch.int32, device=device)
    totals = torch.empty(num_rows, dtype=torch.int64, device=device)
    num_listed = torch.empty(num_rows, dtype=torch.int32, device=device)
    listed = torch.empty(num_rows, _MAX_LISTED, dtype=torch.int32, device=device)
    found = torch.empty(num_rows, MAX_COMPARED, dtype=torch.int64, device=device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    has_mask = params.masks is not None
    masks = logits if params.masks is None else params.masks
    filters = (params.temperature, params.top_k, params.top_p)
    histogram = (bin_sums, bin_counts, totals, num_listed)
    sizes = (logits.stride(0), masks.stride(0), num_tokens, num_stored, num_chunks)
    constants = {"HAS_MASK": has_mask, "NUM_BINS": _NUM_BINS}
    block = max(16, triton.next_power_of_2(num_chunks))
    grid = (min(num_chunks, max(1, _WANTED_PROGRAMS // num_rows)), num_rows)
    _survey[grid](
        logits, masks, *filters, peaks, sums, *histogram, *sizes, **constants, num_warps=4
    )
    constants |= {"MAX_LISTED": _MAX_LISTED, "BLOCK": block}
    _narrow[grid](
        logits, masks, *filters, params.min_p, peaks, sums, *histogram, listed, *sizes,
        **constants, num_warps=4,
    )  # fmt: skip
    _choose[(num_rows,)](
        logits, masks, *filters, params.min_p, params.seed, params.output_index, peaks, sums,
        *histogram, listed, found, tokens, *sizes, **constants, MAX_FOUND=MAX_COMPARED,
        num_warps=8,
    )  # fmt: skip
    return tokens


@triton.jit
def _accept(
    token_ptr, first_ptr, draft_ptr, num_drafts_ptr, accepted_ptr, next_ptr, num_sequences,
    draft_stride, MAX_DRAFTS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    sequences = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = sequences < num_sequences
    first = tl.load(first_ptr + sequences, mask=inside, other=0)
    num_rows = tl.load(first_ptr + sequences + 1, mask=inside, other=0) - first
    num_drafts = tl.load(num_drafts_ptr + sequences, mask=inside, other=0)
    num_drafts = tl.maximum(tl.minimum(num_drafts, num_rows - 1), 0)
    places = tl.arange(0, MAX_DRAFTS)
    has_draft = places[None, :] < num_drafts[:, None]
    own = tl.load(token_ptr + first[:, None] + places[None, :], mask=has_draft, other=0)
    drafts = tl.load(
        draft_ptr + sequences.to(tl.int64)[:, None] * draft_stride + places[None, :],
        mask=has_draft,
        other=0,
    )
    # The first place that differs, or the last draft's end.
    differs = has_draft & (own != drafts)
    accepted = tl.min(tl.where(differs, places[None, :], MAX_DRAFTS), axis=1)
    accepted = tl.minimum(accepted, num_drafts)
    tl.store(accepted_ptr + sequences, accepted, mask=inside)
    token = tl.load(token_ptr + first + accepted, mask=inside & (num_rows > 0), other=-1)
    tl.store(next_ptr + sequences, token, mask=inside)


def accept_drafts(
    tokens: torch.Tensor, first_row: torch.Tensor, drafts: torch.Tensor, num_drafts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See the package. One launch."""
    num_sequences, max_drafts = drafts.shape
    assert tokens.dtype is drafts.dtype is torch.int64
    assert first_row.dtype is num_drafts.dtype is torch.int32
    assert first_row.shape == (num_sequences + 1,)
    assert num_drafts.shape == (num_sequences,)
    assert tokens.is_contiguous()
    num_accepted = torch.empty_like(num_drafts)
    next_token = torch.empty(num_sequences, dtype=torch.int64, device=tokens.device)
    block = 64
    _accept[(triton.cdiv(num_sequences, block),)](
        tokens, first_row, drafts, num_drafts, num_accepted, next_token, num_sequences,
        drafts.stride(0), MAX_DRAFTS=triton.next_power_of_2(max(1, max_drafts)), BLOCK=block,
        num_warps=2,
    )  # fmt: skip
    return num_accepted, next_token
