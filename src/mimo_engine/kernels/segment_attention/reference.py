"""The torch form, and the dense definition that it is tested against.

Time and memory of a windowed call are linear in the number of rows: queries go in blocks, each
against the keys that some query of the block can see. A full call takes time quadratic in the
length of a segment and bounded memory. Where there is no window and no sink, torch's fused kernels
do it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal, get_args

import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["SinkMode", "segment_attention", "segment_attention_reference"]

SinkMode = Literal["extra_column", "key0"]

# Scores that exist at one time outside the fused kernels, in elements. 128 MiB keep a GPU busy
# between launches: a quarter of it takes three times as long there, and is as good for a CPU.
_MAX_SCORE_ELEMENTS = 1 << 25
# Smaller blocks of queries would spend their time on overhead.
_MIN_BLOCK = 16
# Never SDPBackend.MATH: it holds all scores of a segment at once.
_FUSED_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_FUSED_DTYPES = (torch.bfloat16, torch.float32)


def segment_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    *,
    left: int | None,
    right: int | None,
    sinks: torch.Tensor | None = None,
    sink_mode: SinkMode = "extra_column",
    softmax_scale: float,
) -> torch.Tensor:
    """See the package. Differentiable in q, k, v and sinks."""
    assert sum(lengths) == q.shape[0], (sum(lengths), q.shape)
    assert all(bound is None or bound >= 0 for bound in (left, right)), (left, right)
    scoring = _Scoring.of(sinks, sink_mode, softmax_scale, q, k)
    fused = sinks is None and left is None and right in (None, 0) and _has_fused_kernel(q)
    outputs: list[torch.Tensor] = []
    start = 0
    for length, equal in groupby(lengths):
        shape = (len(list(equal)), length)
        rows = slice(start, start + shape[0] * length)
        start = rows.stop
        if length == 0:
            continue
        run = [x[rows].unflatten(0, shape) for x in (q, k, v)]
        if fused:
            out = _fused_attention(*run, causal=right == 0, softmax_scale=softmax_scale)
        else:
            tiling = _tile(length, left, right, num_heads=q.shape[1])
            out = _tiled_attention(*run, tiling, scoring)
        outputs.append(out.flatten(0, 1))
    return torch.cat(outputs) if outputs else torch.empty_like(q)


def _has_fused_kernel(q: torch.Tensor) -> bool:
    # Widths of heads that every backend takes as they are; others are those of toy models.
    return q.dtype in _FUSED_DTYPES and q.shape[-1] % 8 == 0


def _fused_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, causal: bool, softmax_scale: float
) -> torch.Tensor:
    """q [S, L, Hq, D], k and v [S, L, Hkv, D]: S segments of one length. Returns [S, L, Hq, D]."""
    ratio = q.shape[2] // k.shape[2]
    # Spread over the query heads: not every backend groups heads itself.
    q, k, v = (
        x.transpose(1, 2)
        for x in (q, k.repeat_interleave(ratio, dim=2), v.repeat_interleave(ratio, dim=2))
    )
    with sdpa_kernel(_FUSED_BACKENDS):
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
    return out.transpose(1, 2)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Scoring:
    """What a score is besides q . k and the mask. Sinks are [Hkv, Hq / Hkv, 1, 1]."""

    softmax_scale: float
    dtype: torch.dtype
    key0: torch.Tensor | None
    """Added to the score of key 0."""
    column: torch.Tensor | None
    """One more score, without a value."""

    @classmethod
    def of(
        cls,
        sinks: torch.Tensor | None,
        mode: SinkMode,
        softmax_scale: float,
        q: torch.Tensor,
        k: torch.Tensor,
    ) -> _Scoring:
        assert mode in get_args(SinkMode), mode
        dtype = torch.promote_types(q.dtype, torch.float32)
        logits = None if sinks is None else sinks.to(dtype).view(k.shape[1], -1, 1, 1)
        return cls(
            softmax_scale=softmax_scale,
            dtype=dtype,
            key0=logits if mode == "key0" else None,
            column=logits if mode == "extra_column" else None,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tiling:
    """A segment in blocks of queries; block b meets keys b * key_stride + first_key + 0, 1, ...

    Key positions below 0 and from `length` on are padding.
    """

    length: int
    left: int
    right: int
    block: int
    first_key: int
    key_stride: int
    num_keys: int
    tiles_at_once: int

    @property
    def num_blocks(self) -> int:
        return -(-self.length // self.block)

    def query_blocks(self, q: torch.Tensor) -> torch.Tensor:
        """[S, L, H, D] -> [S, num_blocks, block, H, D], padded by zeros."""
        padding = self.num_blocks * self.block - self.length
        return F.pad(q, (0, 0, 0, 0, 0, padding)).unflatten(1, (-1, self.block))

    def key_blocks(self, k: torch.Tensor) -> torch.Tensor:
        """[S, L, H, D] -> a view [S, num_blocks, H, D, num_keys]; neighbours overlap."""
        if self.key_stride == 0:
            return k.permute(0, 2, 3, 1)[:, None].expand(-1, self.num_blocks, -1, -1, -1)
        before = -self.first_key
        rows = (self.num_blocks - 1) * self.key_stride + self.num_keys
        padded = F.pad(k, (0, 0, 0, 0, before, rows - before - self.length))
        return padded.unfold(1, self.num_keys, self.key_stride)

    def visible(self, key: torch.Tensor, first_block: int) -> torch.Tensor:
        """Positions of keys [B, num_keys] -> mask [B, block, num_keys].

        Queries of the padding see all: a softmax of nothing would be NaN, also in gradients.
        """
        row = torch.arange(key.shape[0] * self.block, device=key.device).view(-1, self.block, 1)
        query = row + first_block * self.block
        key = key[:, None]
        seen = (key >= query - self.left) & (key <= query + self.right)
        return (seen & (key >= 0) & (key < self.length)) | (query >= self.length)


def _tile(length: int, left: int | None, right: int | None, *, num_heads: int) -> _Tiling:
    """Blocks of half the window, each with its neighbourhood; or, where that is no less than the
    segment, blocks against the whole segment. It depends on one segment's length alone, so that
    nothing else in a call can change a result."""
    left = length - 1 if left is None else min(left, length - 1)
    right = length - 1 if right is None else min(right, length - 1)
    block = max(_MIN_BLOCK, (left + right) // 2)
    num_keys = left + block + right
    whole = num_keys >= length
    if whole:
        block = num_keys = length
    block = min(block, max(1, _MAX_SCORE_ELEMENTS // (num_heads * num_keys)))
    if not whole:
        num_keys = left + block + right
    return _Tiling(
        length=length,
        left=left,
        right=right,
        block=block,
        first_key=0 if whole else -left,
        key_stride=0 if whole else block,
        num_keys=num_keys,
        tiles_at_once=max(1, _MAX_SCORE_ELEMENTS // (num_heads * num_keys * block)),
    )


def _tiled_attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tiling: _Tiling,
    scoring: _Scoring,
) -> torch.Tensor:
    """q [S, L, Hq, D], k and v [S, L, Hkv, D]: S segments of one length. Returns [S, L, Hq, D]."""
    queries = tiling.query_blocks(q)
    keys, values = tiling.key_blocks(k), tiling.key_blocks(v)
    num_blocks = min(tiling.num_blocks, tiling.tiles_at_once)
    num_segments = max(1, tiling.tiles_at_once // tiling.num_blocks)
    outputs = []
    for segment in range(0, q.shape[0], num_segments):
        parts = []
        for block in range(0, tiling.num_blocks, num_blocks):
            chosen = slice(segment, segment + num_segments), slice(block, block + num_blocks)
            tiles = queries[chosen], keys[chosen], values[chosen]
            parts.append(_attend(*tiles, tiling, block, scoring))
        outputs.append(torch.cat(parts, dim=1))
    return torch.cat(outputs).flatten(1, 2)[:, : tiling.length]


def _attend(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    tiling: _Tiling,
    first_block: int,
    scoring: _Scoring,
) -> torch.Tensor:
    """q [S, B, block, Hq, D], k and v [S, B, Hkv, D, K]: blocks first_block ... first_block + B - 1
    of each segment. Returns [S, B, block, Hq, D].

    The one place where scores exist; they are changed in place, which their gradients allow.
    """
    num_blocks, block, num_heads = q.shape[1:4]
    num_kv_heads = k.shape[2]
    group = (num_heads // num_kv_heads, block)
    rows = q.unflatten(3, (num_kv_heads, -1)).permute(0, 1, 3, 4, 2, 5).flatten(3, 4)
    rows = rows.to(scoring.dtype) * scoring.softmax_scale
    scores = torch.matmul(rows, k.to(scoring.dtype)).unflatten(3, group)

    start = torch.arange(first_block, first_block + num_blocks, device=q.device)
    column = torch.arange(tiling.num_keys, device=q.device)
    key = start[:, None] * tiling.key_stride + tiling.first_key + column
    if scoring.key0 is not None:
        scores.add_(scoring.key0 * (key == 0)[:, None, None, None])
    visible = tiling.visible(key, first_block)
    scores.masked_fill_(~visible[:, None, None], float("-inf"))

    # Any value may be taken off all scores of a row, so no gradient goes through it.
    peak = scores.detach().amax(dim=-1, keepdim=True)
    if scoring.column is not None:
        peak = torch.maximum(peak, scoring.column.detach())
    weights = scores.sub_(peak).exp_()
    total = weights.sum(dim=-1, keepdim=True)
    if scoring.column is not None:
        total = total + (scoring.column - peak).exp()
    out = torch.matmul(weights.flatten(3, 4), v.to(scoring.dtype).transpose(-1, -2))
    out = out.unflatten(3, group) / total
    return out.permute(0, 1, 4, 2, 3, 5).flatten(3, 4).to(q.dtype)


def segment_attention_reference(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    lengths: Sequence[int],
    *,
    left: int | None,
    right: int | None,
    sinks: torch.Tensor | None = None,
    sink_mode: SinkMode = "extra_column",
    softmax_scale: float,
) -> torch.Tensor:
    """The definition of `segment_attention`, by one explicit mask over all N x N pairs."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    ratio = q.shape[1] // k.shape[1]
    keys, values = (x.to(dtype).repeat_interleave(ratio, dim=1) for x in (k, v))
    size = torch.tensor(lengths, device=q.device)
    segment = torch.arange(len(lengths), device=q.device).repeat_interleave(size)
    position = torch.cat([torch.arange(length, device=q.device) for length in lengths])
    distance = position[None, :] - position[:, None]
    visible = segment[None, :] == segment[:, None]
    if left is not None:
        visible &= distance >= -left
    if right is not None:
        visible &= distance <= right

    scores = torch.einsum("ihd,jhd->hij", q.to(dtype), keys) * softmax_scale
    if sinks is not None and sink_mode == "key0":
        scores = scores + sinks.to(dtype)[:, None, None] * (position == 0)
    scores = scores.masked_fill(~visible, float("-inf"))
    if sinks is not None and sink_mode == "extra_column":
        column = sinks.to(dtype)[:, None, None].expand(-1, q.shape[0], 1)
        scores = torch.cat((scores, column), dim=-1)
    weights = scores.softmax(dim=-1)[..., : q.shape[0]]
    return torch.einsum("hij,jhd->ihd", weights, values).to(q.dtype)
