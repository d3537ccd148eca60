"""Cases of paged attention: what is awkward at small size, and what serving does at real size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import accumulate
from typing import Any

import torch

from mimo_engine.kernels.attention import reference, triton
from mimo_engine.kernels.attention.rows import PagedRows
from mimo_engine.kernels.op import Arguments, Case, Op, Work

__all__ = ["OP", "Heads", "Sequences", "make_batch"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Heads:
    """One attention layer."""

    num_heads: int
    num_kv_heads: int
    qk: int = 192
    v: int = 128
    window: int | None = None
    has_sink: bool = False
    page_size: int = 16
    dtype: torch.dtype = torch.bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Sequences:
    """A batch: of each sequence the position of its first row, its rows, how many of those count,
    and what they may see."""

    starts: Sequence[int]
    counts: Sequence[int]
    num_counting: Sequence[int] = field(default=())
    """Empty: all rows count."""
    visible_from: Sequence[int] = field(default=())
    max_len: int | None = None
    """None: the longest."""

    @property
    def ends(self) -> list[int]:
        """Of each sequence, the position after its last row that counts."""
        counting = self.num_counting or self.counts
        return [start + count for start, count in zip(self.starts, counting, strict=True)]

    def lows(self, window: int | None) -> list[int]:
        """Of each sequence, the first position that some row sees."""
        given = self.visible_from or [0] * len(self.starts)
        if window is None:
            return list(given)
        return [max(0, low, s - window + 1) for low, s in zip(given, self.starts, strict=True)]


def make_batch(heads: Heads, batch: Sequences, device: torch.device) -> Arguments:
    """Random tensors. Pages are in no order; what no row sees is NaN, and no page at all."""
    page = heads.page_size
    lows, ends = batch.lows(heads.window), batch.ends
    spans = [
        range(low // page, -(-end // page)) if end > low else range(0)
        for low, end in zip(lows, ends, strict=True)
    ]
    num_pages = sum(map(len, spans)) + 3
    free = torch.randperm(num_pages, device="cpu").split([*map(len, spans), 3])
    table = torch.full((len(spans), max(1, *(s.stop for s in spans)) + 1), -(2**30), device="cpu")
    seen = torch.zeros(num_pages, page, dtype=torch.bool, device="cpu")
    for row, (own, span, low, end) in enumerate(zip(free[:-1], spans, lows, ends, strict=True)):
        table[row, span.start : span.stop] = own
        positions = torch.arange(low, max(low, end), device="cpu")
        seen[table[row][positions // page], positions % page] = True
    hidden = (~seen).flatten().nonzero().flatten().to(device)
    pools = []
    for width in (heads.qk, heads.v):
        shape = (num_pages * page, heads.num_kv_heads, width)
        pool = torch.empty(shape, dtype=heads.dtype, device=device).normal_()
        pools.append(pool.index_fill_(0, hidden, float("nan")))
    first_row = [0, *accumulate(batch.counts)]
    shape = (first_row[-1], heads.num_heads, heads.qk)
    # Some rows look at a few keys, others at all alike.
    q = torch.empty(shape, dtype=heads.dtype, device=device).normal_()
    q *= torch.rand(*shape[:2], 1, device=device).mul_(3).to(heads.dtype)
    sink = torch.randn(heads.num_heads, device=device).to(heads.dtype) if heads.has_sink else None

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.int32, device=device)

    rows = PagedRows(
        first_row=tensor(first_row),
        first_position=tensor(batch.starts),
        last_position=tensor([end - 1 for end in ends]),
        visible_from=tensor(batch.visible_from or [0] * len(batch.starts)),
        page_table=table.int().to(device),
        page_size=page,
        max_rows=max(batch.counts),
        max_len=batch.max_len or max(1, *ends),
    )
    return {
        "q": q,
        "k_pool": pools[0],
        "v_pool": pools[1],
        "rows": rows,
        "num_visible_tokens": heads.window,
        "sink": sink,
    }


def _work(heads: Heads, batch: Sequences, arguments: Arguments) -> Work:
    q = arguments["q"]
    lows = batch.lows(heads.window)
    num_keys = sum(max(0, end - low) for end, low in zip(batch.ends, lows, strict=True))
    per_key = heads.num_kv_heads * (heads.qk + heads.v)
    per_row = heads.num_heads * (heads.qk + heads.v)
    num_scores = sum(
        max(0, min(p + 1 - low, heads.window or p + 1))
        for start, end, low in zip(batch.starts, batch.ends, batch.lows(None), strict=True)
        for p in range(start, end)
    )
    return Work(
        num_bytes=(num_keys * per_key + q.shape[0] * per_row) * q.element_size(),
        num_flops=2 * num_scores * per_row,
    )


def _small(name: str, heads: Heads, **batch: Any) -> Case:
    return Case(name=name, make=partial(make_batch, heads, Sequences(**batch)))


def _real(name: str, heads: Heads, batch: Sequences) -> Case:
    kind = "full" if heads.window is None else "sliding"
    return Case(
        name=f"{name}, {kind}",
        make=partial(make_batch, heads, batch),
        work=partial(_work, heads, batch),
        is_small=False,
    )


_FULL = Heads(num_heads=64, num_kv_heads=4)
_SLIDING = Heads(num_heads=64, num_kv_heads=8, window=128, has_sink=True)


def _real_cases() -> list[Case]:
    cases = []
    for heads in (_FULL, _SLIDING):
        for count, sizes in ((1, (1, 8, 32, 128)), (4, (1, 8, 32))):
            for size in sizes:
                for length in (1024, 16384):
                    name = f"{size} x {count} rows at {length // 1024}k"
                    batch = Sequences(starts=[length - count] * size, counts=[count] * size)
                    cases.append(_real(name, heads, batch))
        for count, start in ((4096, 0), (32768, 0), (2048, 16384)):
            name = f"a chunk of {count} rows at {start // 1024}k"
            cases.append(_real(name, heads, Sequences(starts=[start], counts=[count])))
        mixed = Sequences(starts=[16384] * 32 + [4096], counts=[1] * 32 + [2048])
        cases.append(_real("32 x 1 row at 16k beside a chunk of 2048 at 4k", heads, mixed))
    return cases


_TWO = Heads(num_heads=32, num_kv_heads=2)
_EIGHT = Heads(num_heads=16, num_kv_heads=2, window=20, has_sink=True)
_NARROW = Heads(num_heads=4, num_kv_heads=2, qk=48, v=32)
_DEMO_FULL = Heads(num_heads=8, num_kv_heads=4, page_size=32)
_DEMO_SLIDING = Heads(num_heads=4, num_kv_heads=4, window=32, has_sink=True)
_ODD_GROUP = Heads(num_heads=6, num_kv_heads=2, qk=64, v=64, window=7)
_LENGTHS = (1, 15, 16, 17, 300)

OP = Op(
    name="paged_attention",
    reference=lambda **named: (reference.paged_attention(**named),),
    triton=lambda **named: (triton.paged_attention(**named),),
    cases=(
        _small("decode", _TWO, starts=[n - 1 for n in _LENGTHS], counts=[1] * 5),
        _small("decode, sliding", _EIGHT, starts=[n - 1 for n in _LENGTHS], counts=[1] * 5),
        _small("decode, narrow", _NARROW, starts=[0, 299, 16], counts=[1, 1, 1]),
        _small("decode, pages of 32", _DEMO_FULL, starts=[31, 32, 511], counts=[1] * 3),
        _small("one long sequence", _NARROW, starts=[2100], counts=[1]),
        _small(
            "verify, with padding",
            _TWO,
            starts=[296, -4, 13, 0, 130],
            counts=[4, 4, 0, 3, 1],
            visible_from=[0, 0, 0, 0, 129],
        ),
        _small(
            "verify, sliding, with padding",
            _EIGHT,
            starts=[296, 14, -1, 60, 0],
            counts=[4, 4, 1, 0, 2],
            visible_from=[290, 3, 0, 0, 1],
        ),
        _small("verify, demo", _DEMO_SLIDING, starts=[29, 30, 200], counts=[3, 3, 3]),
        _small(
            "verify, fewer drafts than rows",
            _TWO,
            starts=[296, -4, 13, 31],
            counts=[4, 4, 4, 4],
            num_counting=[1, 4, 3, 1],
        ),
        _small(
            "verify, fewer drafts than rows, sliding",
            _EIGHT,
            starts=[296, 14, 15, 60],
            counts=[4, 4, 4, 4],
            num_counting=[1, 2, 1, 3],
            visible_from=[290, 3, 0, 0],
        ),
        _small(
            "verify many, fewer drafts than rows",
            _EIGHT,
            starts=[296, 14, -17, 60],
            counts=[17, 17, 17, 17],
            num_counting=[1, 9, 17, 16],
        ),
        _small(
            "verify many, fewer drafts than rows, full",
            _NARROW,
            starts=[40, 300],
            counts=[17, 17],
            num_counting=[2, 1],
        ),
        _small("odd group", _ODD_GROUP, starts=[9, 4, 100], counts=[5, 1, 8]),
        _small("chunks", _NARROW, starts=[0, 17, 40], counts=[70, 33, 9], visible_from=[0, 0, 21]),
        _small("chunks, full", _TWO, starts=[5], counts=[21]),
        _small("chunks, sliding", _EIGHT, starts=[0, 37], counts=[50, 18], visible_from=[0, 30]),
        _small(
            "chunks beside decoding",
            _DEMO_SLIDING,
            starts=[90, -2, 3, 40, 0, 100],
            counts=[1, 2, 0, 140, 17, 4],
        ),
        _small("chunks, odd group", _ODD_GROUP, starts=[1, 0], counts=[20, 100]),
        *_real_cases(),
    ),
    # bfloat16 weights and outputs on one side, outputs on the other: half of 2^-8 each.
    tolerance=4e-3,
)
