"""Compile every operator for a Hopper GPU, on a machine without one, and read the machine code.

    python tools/check_sass.py [PART OF A NAME ...]

For each case of kernels/cases.py that a GPU would run, its kernels are compiled for sm_90 with the
shapes of the case, and a line says: registers, bytes of spilled registers, shared memory, how many
instructions the shortest loop with products has, and which matrix instructions there are. It ends
with an error where that is not what sass_gates.py asks for. Runs under triton 3.6
(`make check-sass`), whose wheels bring a disassembler and whose compiler serves on GPUs.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from mimo_engine.kernels.cases import OPS
from sass_gates import Code, complaints

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


def compiled(call: Any) -> list[Code]:
    """The kernels that `call` would launch."""
    found: list[Code] = []
    run = JITFunction.run

    def compile_only(self: JITFunction, *args: Any, **named: Any) -> None:
        kernel = run(self, *args, **{**named, "warmup": True})
        module = self.fn.__module__.removeprefix("mimo_engine.kernels.")
        constants = {key: x for key, x in named.items() if isinstance(x, bool | int)}
        found.append(_read(kernel, f"{module}.{kernel.metadata.name}", constants))

    JITFunction.run = compile_only
    try:
        call()
    finally:
        JITFunction.run = run
    return found


def _read(kernel: Any, name: str, constants: Mapping[str, Any]) -> Code:
    registers, spilled_bytes, lines = _disassembled(kernel.asm["cubin"])
    loop, num_spills = _loops(lines)
    return Code(
        name=name,
        constants=constants,
        num_registers=registers,
        spilled_bytes=spilled_bytes,
        shared_bytes=kernel.metadata.shared,
        matrix=Counter(_MATRIX.findall("\n".join(lines))),
        loop=loop,
        num_spills_in_loops=num_spills,
    )


@cache
def _disassembled(cubin: bytes) -> tuple[int, int, Sequence[str]]:
    """(registers, bytes spilled, lines); many cases launch the same code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = _output("cuobjdump", "-res-usage", file.name)
        lines = _output("nvdisasm", "-c", file.name).splitlines()
    numbers = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage)}
    return numbers["REG"], numbers["STACK"] + numbers["LOCAL"], lines


def _output(tool: str, *arguments: str) -> str:
    return subprocess.run(
        [_TOOLS / tool, *arguments], check=True, capture_output=True, text=True
    ).stdout


def _loops(lines: Sequence[str]) -> tuple[int, int]:
    """(instructions of the shortest loop that multiplies, or of the shortest where none does, and 0
    without one; loads and stores of spilled registers in loops that multiply).

    A loop is what stands between a label and a branch back to it; the one branch to itself is the
    end of the code.
    """
    places: dict[str, int] = {}
    loops: list[tuple[int, int]] = []
    code: list[str] = []
    for line in lines:
        label = re.match(r"\s*(\.L_x_\d+):", line)
        if label:
            places[label[1]] = len(code)
        elif re.search(r"/\*[0-9a-f]{4,}\*/", line):
            code.append(line)
            branch = re.search(r"\bBRA\b.*`\((\.L_x_\d+)\)", line)
            if branch and places.get(branch[1], len(code)) < len(code) - 1:
                loops.append((places[branch[1]], len(code)))
    multiplying = [loop for loop in loops if any(map(_MATRIX.search, code[slice(*loop)]))]
    inside = {place for loop in multiplying for place in range(*loop)}
    num_spills = sum(bool(re.search(r"\b(LDL|STL)\b", code[place])) for place in inside)
    return min((b - a for a, b in multiplying or loops), default=0), num_spills


def main(wanted: list[str]) -> int:
    driver.set_active(_Hopper())
    torch.set_default_device("meta")
    failures: dict[str, None] = {}
    for op in OPS:
        for case in op.cases:
            title = f"{op.name}: {case.name}"
            if case.work is None or not all(part in title for part in wanted):
                continue
            print(title, flush=True)
            arguments = case.make(torch.device("meta"))
            for code in compiled(lambda op=op, arguments=arguments: op.triton(**arguments)):
                print(f"    {code}")
                for complaint in complaints(code):
                    failures[f"{title}: {code.name} {complaint}"] = None
    print(*failures, sep="\n", end="\n" if failures else "")
    return bool(failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
