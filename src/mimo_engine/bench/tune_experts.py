"""Which cut of the products with many tokens is fastest? All candidates, the likely best first.

    python -m mimo_engine.bench.tune_experts [--limit-s 180] [--out FILE]

Products are gate and up, and down, of 256 experts (kernels/moe/many_tokens.py), and an FP8 product
with plain rows (kernels/linear/triton.py). After what is served come the candidates in the order of
what is predicted for them, so that a run that is cut short has seen the best ones. Each is compared
with the definition on few experts of the real widths, then timed at the real sizes: a table row,
and a JSON line at once. In the end all are listed, best first, and the best plan is timed as a
whole beside the served one. Ends by itself before the limit, but for a kernel that does not end.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mimo_engine.bench.ceilings import context_is_lost, graph_seconds
from mimo_engine.bench.record import append_line, repository_root
from mimo_engine.kernels.linear import reference as linear_reference
from mimo_engine.kernels.linear.cases import random_fp8
from mimo_engine.kernels.linear.triton import (
    MANY_TILINGS,
    ManyTiling,
    multiply_many,
    quantise_rows,
)
from mimo_engine.kernels.moe import reference
from mimo_engine.kernels.moe.cases import random_arguments
from mimo_engine.kernels.moe.many_tokens import (
    DOWN_TILINGS,
    SERVED,
    UP_TILINGS,
    ManyPlan,
    Pieces,
    Tiling,
    experts_many,
    make_tiles_for,
    multiply_down,
    multiply_up,
)
from mimo_engine.kernels.op import relative_error

__all__ = ["main"]

_NUM_EXPERTS, _SIZE, _WIDTH, _TOP_K = 256, 4096, 2048, 8
_DENSE_ROWS, _DENSE_PERIOD = 14848, 3712
_DEVICE = torch.device("cuda")
_CROWDING = 0.5
"""Of a crowded load: deviation of an expert's score beside one of 1 among tokens."""
_TOLERANCE = 1e-2
_NUM_ROUNDS = 7

_PREDICTED_US: Mapping[str, Mapping[str, float]] = {
    # Of 4,096 tokens on an H200; why: docs/log.md, 2026-11-26.
    "up": {
        "wide": 1800,
        "wide pair": 1460,
        "wide, 4 stages": 1500,
        "wide, 16 warps": 1500,
        "rest inside, 6 stages": 1610,
        "rest inside, 5 stages": 1630,
        "rest inside, 4 stages": 1660,
        "two at once": 1700,
        "three at once": 2300,
    },
    "down": {
        "wide": 1154,
        "two at once": 850,
        "wide pair": 880,
        "rest inside, 6 stages": 900,
        "rest inside, 5 stages": 910,
        "rest inside, 4 stages": 930,
        "wide, 128 rows": 1080,
        "three at once": 1300,
    },
    "dense": {"one": 538, "pair": 430, "pair, 16 warps": 440, "one, 6 stages": 530},
}
_SERVED_NAMES = {"up": "wide", "down": "wide", "dense": "one"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to cut one product."""

    product: str
    name: str
    tiling: Tiling | ManyTiling
    predicted_us: float

    @property
    def full_name(self) -> str:
        return f"{self.product} {self.name}"

    @property
    def is_served(self) -> bool:
        return _SERVED_NAMES[self.product] == self.name

    @property
    def predicted_share(self) -> float:
        """Of the served one's time."""
        return self.predicted_us / _PREDICTED_US[self.product][_SERVED_NAMES[self.product]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """Of one candidate."""

    candidate: Candidate
    error: float | None
    us: Mapping[str, float]
    """By load; empty where the result is wrong or the kernel did not start."""
    problem: str = ""
    seconds: float
    """With the compiler's."""
    is_fatal: bool = False
    """Whether the device's context is lost: nothing that follows could run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """Tokens and their experts, for both products and for the plain one."""

    name: str
    x: torch.Tensor
    values: torch.Tensor
    scales: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor
    h: torch.Tensor
    h_scales: torch.Tensor


def candidates() -> list[Candidate]:
    """The served ones, then the others in the order in which they are tried."""
    tables: Mapping[str, Mapping[str, Tiling | ManyTiling]] = {
        "up": UP_TILINGS,
        "down": DOWN_TILINGS,
        "dense": MANY_TILINGS,
    }
    found = [
        Candidate(
            product=product, name=name, tiling=tiling, predicted_us=_PREDICTED_US[product][name]
        )
        for product, table in tables.items()
        for name, tiling in table.items()
    ]
    return sorted(found, key=lambda one: (not one.is_served, one.predicted_share))


class _Bench:
    """Weights, loads and expected results."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        # More than a tile for some experts and less than half of one for others.
        self._small = random_arguments(700, (8, _SIZE, _WIDTH), 2, True, None, _DEVICE)
        self._expected = reference.experts(**self._small)[:, 0]
        real = random_arguments(1, (_NUM_EXPERTS, _SIZE, _WIDTH), _TOP_K, True, None, _DEVICE)
        self.first, self.second = Pieces.of(real["gate_up"]), Pieces.of(real["down"])
        self._dense = random_fp8(_DENSE_ROWS, _SIZE, _DENSE_PERIOD, _DEVICE)
        self._rows = torch.randn(300, _SIZE, device=_DEVICE).bfloat16()
        self._product = linear_reference.linear(self._rows, self._dense)
        self.loads = [
            _load("4096", 4096, 0.0),
            _load("4096 crowded", 4096, _CROWDING),
            _load("8192", 8192, 0.0),
        ]

    def error(self, candidate: Candidate) -> float:
        """Of the whole operator with this candidate in it, on few experts or rows."""
        if isinstance(candidate.tiling, ManyTiling):
            codes, scales = quantise_rows(self._rows)
            out = multiply_many(codes, scales, self._dense, torch.bfloat16, candidate.tiling)
            return relative_error(out, self._product)
        named = dict(self._small)
        first, second = Pieces.of(named.pop("gate_up")), Pieces.of(named.pop("down"))
        plan = _plan(candidate)
        assert plan.up.fits(first, 2)
        assert plan.down.fits(second, 1)
        parts = experts_many(**named, first=first, second=second, plan=plan)
        return relative_error(parts.float().sum(dim=1).bfloat16(), self._expected)

    def us(self, candidate: Candidate, load: Load) -> float:
        """Of one product, the tiles being made."""
        tiling = candidate.tiling
        if isinstance(tiling, ManyTiling):
            return _us(
                lambda: multiply_many(load.values, load.scales, self._dense, torch.bfloat16, tiling)
            )
        tiles = make_tiles_for(tiling, load.chosen, _NUM_EXPERTS)
        if candidate.product == "up":
            return _us(
                lambda: multiply_up(load.values, load.scales, self.first, tiles, _TOP_K, tiling)
            )
        return _us(
            lambda: multiply_down(load.h, load.h_scales, self.second, tiles, load.weights, tiling)
        )

    def plan_us(self, plan: ManyPlan, load: Load) -> float:
        """Of the whole operator, tiles and activations' FP8 included."""
        return _us(
            lambda: experts_many(load.x, load.chosen, load.weights, self.first, self.second, plan)
        )


def _plan(candidate: Candidate) -> ManyPlan:
    assert isinstance(candidate.tiling, Tiling)
    if candidate.product == "up":
        return ManyPlan(up=candidate.tiling, down=SERVED.down)
    return ManyPlan(up=SERVED.up, down=candidate.tiling)


def _load(name: str, num_tokens: int, crowding: float) -> Load:
    x = torch.randn(num_tokens, _SIZE, device=_DEVICE).bfloat16()
    scores = torch.randn(num_tokens, _NUM_EXPERTS, device=_DEVICE)
    scores += crowding * torch.randn(_NUM_EXPERTS, device=_DEVICE)
    values, scales = quantise_rows(x)
    h = torch.randn(num_tokens * _TOP_K, _WIDTH, device=_DEVICE).bfloat16()
    codes, h_scales = quantise_rows(h)
    return Load(
        name=name,
        x=x,
        values=values,
        scales=scales,
        chosen=scores.topk(_TOP_K, dim=-1).indices.int(),
        weights=torch.full((num_tokens, _TOP_K), 1 / _TOP_K, device=_DEVICE),
        h=codes,
        h_scales=h_scales,
    )


def _us(call: Callable[[], object]) -> float:
    return 1e6 * graph_seconds([call] * 2, num_rounds=_NUM_ROUNDS)


def _try(bench: _Bench, candidate: Candidate) -> Result:
    started = perf_counter()
    error, problem = None, ""
    us: dict[str, float] = {}
    is_fatal = False
    try:
        error = bench.error(candidate)
        if error <= _TOLERANCE:
            for load in bench.loads:
                us[load.name] = round(bench.us(candidate, load), 1)
        else:
            problem = "wrong"
    except Exception as failure:  # of the compiler or a launch: the others are still to be seen
        problem = repr(failure)[:200]
        is_fatal = context_is_lost()
    return Result(
        candidate=candidate,
        error=error,
        us=us,
        problem=problem,
        seconds=round(perf_counter() - started, 1),
        is_fatal=is_fatal,
    )


def _row(result: Result) -> str:
    candidate = result.candidate
    times = "".join(f"{time:>14.1f}" for time in result.us.values()) or f"  {result.problem}"
    served = "served" if candidate.is_served else ""
    error = "-" if result.error is None else f"{result.error:.1e}"
    return (
        f"{candidate.product:<7}{candidate.name:<24}{served:<8}{candidate.predicted_us:>10.0f}"
        f"{error:>10}{result.seconds:>7.1f}{times}"
    )


def _best(results: Sequence[Result], product: str) -> list[Result]:
    """Of those that were timed, by the sum over all loads."""
    own = [one for one in results if one.candidate.product == product and one.us]
    return sorted(own, key=lambda one: sum(one.us.values()))


def _best_plan(results: Sequence[Result]) -> ManyPlan:
    up, down = SERVED.up, SERVED.down
    for one in _best(results, "up")[:1]:
        assert isinstance(one.candidate.tiling, Tiling)
        up = one.candidate.tiling
    for one in _best(results, "down")[:1]:
        assert isinstance(one.candidate.tiling, Tiling)
        down = one.candidate.tiling
    return ManyPlan(up=up, down=down)


def _append(path: Path, record: Mapping[str, Any]) -> None:
    append_line(path, "tune_experts", {"device": torch.cuda.get_device_name(), **record})


def run(path: Path, limit_s: float, skipped: Sequence[str]) -> None:
    """Try all but those skipped, as far as the time goes. Exits with 1 after a kernel that broke
    the device's context."""
    started = perf_counter()
    bench = _Bench()
    names = "".join(f"{load.name:>14}" for load in bench.loads)
    print(f"{torch.cuda.get_device_name()}, ready after {perf_counter() - started:.1f} s")
    print(f"{'microseconds':<39}{'predicted':>10}{'error':>10}{'s':>7}{names}", flush=True)
    for load in bench.loads:
        tiles = make_tiles_for(SERVED.up, load.chosen, _NUM_EXPERTS)
        us = {
            "tiles": _us(lambda load=load: make_tiles_for(SERVED.up, load.chosen, _NUM_EXPERTS)),
            "FP8 of x": _us(lambda load=load: quantise_rows(load.x)),
        }
        counts = tiles.counts.float()
        print(f"  {load.name}: rows {counts.mean():.0f} +- {counts.std():.0f} an expert, {us}")
        _append(path, {"load": load.name, "us": us})
    results: list[Result] = []
    slowest = 0.0
    for candidate in candidates():
        if candidate.full_name in skipped:
            continue
        if perf_counter() - started + slowest > limit_s:
            print("the time is up")
            break
        result = _try(bench, candidate)
        results.append(result)
        slowest = max(slowest, result.seconds)
        print(_row(result), flush=True)
        _append(path, {**asdict(result)})
        if result.is_fatal:
            print(f'the context is lost: go on with --skip "{candidate.full_name}"')
            break
    print("best first")
    for product in _SERVED_NAMES:
        print(*map(_row, _best(results, product)), sep="\n", flush=True)
    if results and results[-1].is_fatal:
        sys.exit(1)
    for name, plan in (("served", SERVED), ("best", _best_plan(results))):
        if perf_counter() - started + slowest > limit_s:
            break
        us = {load.name: round(bench.plan_us(plan, load), 1) for load in bench.loads}
        print(f"experts, {name}: {us}", flush=True)
        _append(path, {"plan": name, **asdict(plan), "us": us})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--limit-s", type=float, default=180.0, help="after which nothing is begun")
    parser.add_argument("--out", type=Path, help="where lines are appended")
    parser.add_argument(
        "--skip", action="append", default=[], metavar='"PRODUCT NAME"', help="a candidate"
    )
    options = parser.parse_args()
    results = repository_root() / "benchmarks" / "results"
    run(options.out or results / "tune_experts.jsonl", options.limit_s, options.skip)


if __name__ == "__main__":
    main()
