"""Cases of choosing tokens, by what the rows ask for and how many there are, and of drafts."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import cycle, islice

import torch

from mimo_engine.kernels.op import Arguments, Case, Op, Work
from mimo_engine.kernels.sampling import RowParams, reference, triton

__all__ = ["OPS", "make_params"]

Setting = tuple[float, int, float, float]
"""temperature, top_k, top_p, min_p"""

_GREEDY: Setting = (0.0, 0, 1.0, 0.0)
_WARM: Setting = (1.0, 0, 1.0, 0.0)
_TOP_P: Setting = (0.6, 0, 0.95, 0.0)
_TOP_K: Setting = (1.0, 50, 1.0, 0.0)
_MIN_P: Setting = (1.5, 0, 1.0, 0.05)
_ALL: Setting = (0.9, 40, 0.9, 0.02)
_WIDE: Setting = (4.0, 0, 0.999, 0.0)
_MANY: Setting = (2.0, 700, 0.99, 0.0)
_ONE: Setting = (3.0, 1, 1.0, 0.0)
_MIXED = (_WARM, _GREEDY, _TOP_P, _TOP_K, _MIN_P, _ALL, _WIDE, _MANY, _ONE)


def make_params(
    settings: Sequence[Setting],
    num_rows: int,
    num_live_tokens: int,
    device: torch.device,
    masks: torch.Tensor | None = None,
) -> RowParams:
    """The settings in turn, with random seeds and places."""
    columns = zip(*islice(cycle(settings), num_rows), strict=True)
    temperature, top_k, top_p, min_p = (torch.tensor(column, device=device) for column in columns)
    return RowParams(
        temperature=temperature,
        top_k=top_k.int(),
        top_p=top_p,
        min_p=min_p,
        seed=torch.randint(-(2**62), 2**62, (num_rows,), device=device),
        output_index=torch.randint(0, 2**20, (num_rows,), device=device),
        num_live_tokens=num_live_tokens,
        masks=masks,
    )


def _make(
    shape: tuple[int, int],
    dtype: torch.dtype,
    settings: Sequence[Setting],
    is_masked: bool,
    spread: float,
    device: torch.device,
) -> Arguments:
    num_rows, num_tokens = shape
    # Most tokens far below a few dozen: as models have it.
    logits = torch.randn(num_rows, num_tokens, device=device).mul_(spread)
    logits += torch.rand(num_rows, num_tokens, device=device).pow_(1024).mul_(5 * spread)
    masks = None
    if is_masked:
        shape = (num_rows, -(-num_tokens // 32))
        masks = torch.randint(-(2**31), 2**31, shape, device=device).int()
    num_live = num_tokens - num_tokens // 100
    params = make_params(settings, num_rows, num_live, device, masks)
    return {"logits": logits.to(dtype), "params": params}


def _work(arguments: Arguments) -> Work:
    return Work(num_bytes=arguments["logits"].nbytes)


def _case(
    name: str,
    num_rows: int,
    num_tokens: int,
    settings: Sequence[Setting],
    *,
    dtype: torch.dtype = torch.float32,
    is_masked: bool = False,
    spread: float = 2.4,
) -> Case:
    is_small = num_tokens < 2**16
    kind = "fp32" if dtype is torch.float32 else "bf16"
    return Case(
        name=f"{kind} {num_rows} x {num_tokens} {name}",
        make=partial(_make, (num_rows, num_tokens), dtype, settings, is_masked, spread),
        work=None if is_small else _work,
        is_small=is_small,
    )


def _make_drafts(num_sequences: int, max_drafts: int, device: torch.device) -> Arguments:
    """Few ids, so that many are accepted; sequences without drafts, and without rows."""
    counts = torch.randint(0, max_drafts + 1, (num_sequences,), device=device).int()
    num_rows = torch.where(torch.rand(num_sequences, device=device) < 0.1, 0, counts + 1)
    ends = num_rows.cumsum(0).int()
    first_row = torch.cat([torch.zeros_like(ends[:1]), ends])
    shape = (num_sequences, max_drafts)
    return {
        "tokens": torch.randint(0, 2, (num_sequences * (1 + max_drafts),), device=device),
        "first_row": first_row,
        "drafts": torch.randint(0, 2, shape, device=device),
        "num_drafts": torch.where(num_rows > 0, counts, 0),
    }


def _drafts_case(num_sequences: int, max_drafts: int, *, is_timed: bool = False) -> Case:
    return Case(
        name=f"{num_sequences} sequences, {max_drafts} drafts",
        make=partial(_make_drafts, num_sequences, max_drafts),
        work=_drafts_work if is_timed else None,
    )


def _drafts_work(arguments: Arguments) -> Work:
    return Work(num_bytes=arguments["tokens"].nbytes + arguments["drafts"].nbytes)


_SMALL = (
    _case("mixed", 9, 3000, _MIXED),
    _case("mixed", 9, 1100, _MIXED, dtype=torch.bfloat16),
    _case("masked", 9, 2100, _MIXED, is_masked=True),
    _case("tied", 9, 2500, _MIXED, spread=0.1, dtype=torch.bfloat16),
    _case("all equal", 9, 1500, _MIXED, spread=0.0),
    _case("of one bin", 5, 1700, (_WIDE, _MANY, _TOP_P), spread=1e-3),
    _case("wide", 2, 20000, (_WIDE, _TOP_P)),
    _case("mixed", 9, 7, _MIXED),
)
_V = 152576
_LARGE = (
    *(
        _case(name, num_rows, _V, settings, dtype=dtype)
        for num_rows in (1, 4, 32, 128, 512)
        for dtype in (torch.float32, torch.bfloat16)
        for name, settings in (
            ("greedy", (_GREEDY,)),
            ("temperature", (_WARM,)),
            ("top_p", (_TOP_P,)),
            ("top_k, top_p", (_ALL,)),
        )
    ),
    _case("min_p", 1, _V, (_MIN_P,)),
    _case("wide top_p", 1, _V, (_WIDE,)),
    _case("all equal, top_p", 1, _V, (_WIDE,), spread=0.0),
    _case("masked", 32, _V, _MIXED, is_masked=True),
    _case("mixed", 128, _V, _MIXED),
)

OPS = (
    Op(
        name="sample_rows",
        reference=lambda **named: (reference.sample_rows(**named),),
        triton=lambda **named: (triton.sample_rows(**named),),
        cases=_SMALL + _LARGE,
        # Integers are summed, and float64 is rounded alike everywhere.
        tolerance=0.0,
    ),
    Op(
        name="accept_drafts",
        reference=reference.accept_drafts,
        triton=triton.accept_drafts,
        cases=(
            _drafts_case(70, 3),
            _drafts_case(3, 1),
            _drafts_case(1, 5),
            _drafts_case(128, 3, is_timed=True),
        ),
        tolerance=0.0,
    ),
)
