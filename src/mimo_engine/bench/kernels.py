"""Every operator on this GPU: time, and the share of what the hardware allows.

Each case is first compared with its reference. Then calls on enough different arguments to defeat
the cache are captured in one graph, so that neither Python nor launches are timed. The limit is the
larger of two times: the bytes that have to move over the rate of a measured copy, and the products
over the rate of a measured matrix product.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from mimo_engine.bench.ceilings import Ceilings, context_is_lost, graph_seconds, measure_ceilings
from mimo_engine.bench.record import append_result, repository_root
from mimo_engine.kernels.cases import OPS
from mimo_engine.kernels.op import Case, Op, relative_error

__all__ = ["main"]

_CACHE_BYTES = 2**28
"""Arguments are rotated until the calls together touch so many: several times the cache."""
_MAX_COPIES = 256
"""Of arguments of a megabyte and less: they share some of it, so less could stay in the cache."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one case."""

    seconds: float
    limit_s: float
    error: float

    @property
    def share(self) -> float:
        return self.limit_s / self.seconds


def time_case(op: Op, case: Case, ceilings: Ceilings) -> Timing:
    """Raises AssertionError where the result is not the reference's."""
    assert case.work is not None
    torch.manual_seed(0)
    first = case.make(torch.device("cuda"))
    pairs = zip(op.triton(**first), op.reference(**first), strict=True)
    error = max(relative_error(mine, wanted) for mine, wanted in pairs)
    assert error <= op.tolerance, f"{op.name}: {case.name}: error {error:.2e}"
    work = case.work(first)
    num_sets = min(_MAX_COPIES, max(1, _CACHE_BYTES // work.num_bytes))
    sets = [first, *(case.make(torch.device("cuda")) for _ in range(num_sets - 1))]
    num_calls = max(len(sets), 4)
    arguments = [sets[i % len(sets)] for i in range(num_calls)]
    seconds = graph_seconds([lambda own=own: op.triton(**own) for own in arguments])
    rate = ceilings.fp8_flops if work.is_fp8 else ceilings.bf16_flops
    limit = max(work.num_bytes / ceilings.copy_bytes_per_s, work.num_flops / rate)
    return Timing(seconds, limit, error)


def main(parts: Sequence[str]) -> int:
    """Time the cases whose names have all of these parts: print the table and append a JSON line
    for each, those included that failed. Returns 1 if any did, otherwise 0.

    Raises ConfigError outside a checkout of the repository, before anything is timed.
    """
    repository_root()
    ceilings = measure_ceilings()
    print(
        f"{torch.cuda.get_device_name()}: copy {ceilings.copy_bytes_per_s / 1e12:.2f} TB/s, "
        f"bf16 {ceilings.bf16_flops / 1e12:.0f}, fp8 {ceilings.fp8_flops / 1e12:.0f} TFLOP/s"
    )
    print(f"{'operator':<48}{'us':>10}{'limit':>10}{'share':>8}{'error':>10}")
    cases = [
        (f"{op.name}: {case.name}", op, case)
        for op in OPS
        for case in op.cases
        if case.work is not None
    ]
    chosen = [one for one in cases if all(part in one[0] for part in parts)]
    failed = []
    for number, (name, op, case) in enumerate(chosen):
        result, problem = _try(name, op, case, ceilings)
        _record(name, ceilings, result)
        if not problem:
            continue
        failed.append(name)
        if context_is_lost():
            print(f"the context is lost: {len(chosen) - number - 1} cases are left")
            break
    for name in failed:
        print(f"failed: {name}")
    return 1 if failed else 0


def _try(name: str, op: Op, case: Case, ceilings: Ceilings) -> tuple[dict[str, object], str]:
    """(what is recorded of one case, what went wrong), after its row of the table is printed."""
    try:
        timing = time_case(op, case, ceilings)
        torch.cuda.empty_cache()
    except Exception as failure:  # of the compiler, a launch or memory: others may run
        problem = repr(failure)[:200]
        print(f"{name:<48}  {problem}", flush=True)
        return {"problem": problem}, problem
    print(
        f"{name:<48}{timing.seconds * 1e6:>10.1f}{timing.limit_s * 1e6:>10.1f}"
        f"{timing.share:>8.0%}{timing.error:>10.1e}",
        flush=True,
    )
    return {"us": round(timing.seconds * 1e6, 2), "share_of_limit": round(timing.share, 4)}, ""


def _record(name: str, ceilings: Ceilings, result: Mapping[str, object]) -> None:
    ceiling = {
        "copy_TB_per_s": round(ceilings.copy_bytes_per_s / 1e12, 3),
        "bf16_TFLOP_per_s": round(ceilings.bf16_flops / 1e12, 1),
        "fp8_TFLOP_per_s": round(ceilings.fp8_flops / 1e12, 1),
    }
    device = torch.cuda.get_device_name()
    append_result("kernels", {"device": device, "ceilings": ceiling, "case": name, **result})


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
