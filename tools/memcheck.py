"""Small cases of all operators under NVIDIA's compute-sanitizer: python tools/memcheck.py

Reads and writes outside of what was allocated, by address. Every tensor is an allocation of its own
here: within torch's blocks of many tensors nothing would be seen. Cases go round all operators, so
that a run that the limit ends has seen some of each. Exit codes: 0 clean, 9 errors were found, 1 a
kernel failed, 2 there is no GPU or no compute-sanitizer.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from itertools import zip_longest
from pathlib import Path
from time import perf_counter

import torch

from mimo_engine.kernels.cases import OPS

__all__ = ["main"]

_FOUND = 9
_ENVIRONMENT = {
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
    "CUDA_LAUNCH_BLOCKING": "1",
    "TRITON_INTERPRET": "0",
}


def run_cases(limit_s: float) -> None:
    """Each launch is waited for. Ends with the first case after limit_s."""
    started = perf_counter()
    small = [[(op, case) for case in op.cases if case.is_small] for op in OPS]
    cases = [one for around in zip_longest(*small) for one in around if one is not None]
    done = dict.fromkeys((op.name for op in OPS), 0)
    for op, case in cases:
        if perf_counter() - started > limit_s:
            break
        torch.manual_seed(0)
        op.triton(**case.make(torch.device("cuda")))
        torch.cuda.synchronize()
        done[op.name] += 1
    seconds = perf_counter() - started
    print(f"{sum(done.values())} of {len(cases)} cases in {seconds:.0f} s: {done}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--limit-s", type=float, default=600.0, help="after which no case is begun")
    parser.add_argument("--log", type=Path, help="of what compute-sanitizer says; default: printed")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        run_cases(options.limit_s)
        return 0
    sanitizer = shutil.which("compute-sanitizer")
    if sanitizer is None or not torch.cuda.is_available():
        print("a GPU and compute-sanitizer of the CUDA toolkit are needed", file=sys.stderr)
        return 2
    command = [sanitizer, "--tool", "memcheck", "--error-exitcode", str(_FOUND)]
    command += ["--log-file", str(options.log)] if options.log else []
    command += [sys.executable, __file__, "--inside", "--limit-s", str(options.limit_s)]
    return subprocess.run(command, env={**os.environ, **_ENVIRONMENT}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
