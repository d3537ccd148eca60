"""Compile every operator for a Hopper GPU, on a machine without one, and read the machine code.

    python tools/check_sass.py [PART OF A NAME ...]

For each case of kernels/cases.py that a GPU would run, its kernels are compiled for sm_90 with the
shapes of the case, and a line says: registers, bytes of spilled registers, shared memory, which
matrix instructions there are, and how many instructions the innermost loop with such has. It ends
with an error where registers are spilled, or where a product of FP8 or bfloat16 has no instruction
of Hopper's warp groups. Runs under triton 3.6 (`make check-sass`), whose wheels bring a
disassembler.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mimo_engine.kernels.cases import OPS

_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_MATRIX = re.compile(r"\b(HGMMA|QGMMA|IGMMA|HMMA|QMMA|IMMA)\b")


class _Hopper:
    """What Triton asks of a driver before it compiles."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return device


@dataclass(frozen=True, slots=True)
class Code:
    """One compiled kernel."""

    name: str
    num_registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix: Counter[str]
    loop: int
    """Instructions of the innermost loop that multiplies, or loads where none does."""

    def __str__(self) -> str:
        matrix = ", ".join(f"{count} {name}" for name, count in sorted(self.matrix.items())) or "-"
        return (
            f"{self.name:<28}{self.num_registers:>5} regs{self.spilled_bytes:>6} spilled"
            f"{self.shared_bytes / 1024:>7.0f} KiB  loop {self.loop:>5}  {matrix}"
        )


def compiled(call: Any) -> list[Code]:
    """The kernels that `call` would launch."""
    found: list[Code] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, **named: Any) -> None:
        kernel = run(self, *args, **{**named, "warmup": True})
        found.append(_read(kernel))

    JITFunction.run = compile_only
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def _read(kernel: Any) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        lines = _output("nvdisasm", "-c", file.name).splitlines()
    numbers = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    code = "\n".join(lines)
    return Code(
        name=kernel.metadata.name,
        num_registers=int(numbers["REG"]),
        spilled_bytes=int(numbers["STACK"]) + int(numbers["LOCAL"]),
        shared_bytes=kernel.metadata.shared,
        matrix=Counter(_MATRIX.findall(code)),
        loop=_innermost(lines),
    )


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [_TOOLS / tool, *arguments], check=True, capture_output=True, text=True
    ).stdout


def _innermost(lines: list[str]) -> int:
    """Instructions between a label and the backward branch to it, of the shortest such range that
    multiplies; 0 without one."""
    places, number = {}, 0
    ranges: list[tuple[int, int]] = []
    has_matrix: list[int] = []
    for line in lines:
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            places[label[1]] = number
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            number += 1
            if _MATRIX.search(line):
                has_matrix.append(number)
            branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
            if branch and branch[1] in places:
                ranges.append((places[branch[1]], number))
    loops = [(a, b) for a, b in ranges if any(a < place <= b for place in has_matrix)]
    return min((b - a for a, b in loops or ranges), default=0)


def main(wanted: list[str]) -> int:
    driver.set_active(_Hopper())
    torch.set_default_device("meta")
    complaints = []
    for op in OPS:
        for case in op.cases:
            title = f"{op.name}: {case.name}"
            if case.work is None or not all(part in title for part in wanted):
                continue
            print(title)
            arguments = case.make(torch.device("meta"))
            for code in compiled(lambda op=op, arguments=arguments: op.triton(**arguments)):
                print(f"    {code}")
                if code.spilled_bytes:
                    complaints.append(f"{title}: {code.name} spills {code.spilled_bytes} bytes")
    print(*complaints, sep="\n")
    return bool(complaints)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
