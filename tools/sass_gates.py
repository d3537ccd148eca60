"""What must hold of a kernel's machine code on Hopper; check_sass.py reads that code.

No registers are spilled. Products are made by the instruction that operands and tiles are meant
for: tiles of 64 rows and more belong to warp groups, FP8 to QGMMA and the rest to HGMMA. And
kernels that stream weights for few tokens have a limit of instructions: on an H200 some 20 bytes
come from memory in the time in which a multiprocessor issues 4 instructions of 32 threads, so with
more than 6 of a thread for each byte of weights the memory waits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Code", "complaints"]

Constants = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Code:
    """One compiled kernel."""

    name: str
    """Module below `kernels`, and function."""
    constants: Constants
    """What its launch passed by name."""
    num_registers: int
    spilled_bytes: int
    shared_bytes: int
    matrix: Counter[str]
    loop: int
    """Instructions of the shortest loop that multiplies, or of the shortest where none does."""
    num_spills_in_loops: int
    """Loads and stores of spilled registers in loops that multiply."""

    @property
    def num_threads(self) -> int:
        return 32 * self.constants.get("num_warps", 4)

    def __str__(self) -> str:
        matrix = ", ".join(f"{count} {name}" for name, count in sorted(self.matrix.items())) or "-"
        return (
            f"{self.name:<34}{self.num_registers:>5} regs{self.spilled_bytes:>6} spilled"
            f"{self.shared_bytes / 1024:>7.0f} KiB  loop {self.loop:>5}  {matrix}"
        )


@dataclass(frozen=True, slots=True)
class _Spills:
    num_bytes: int = 0
    num_in_loops: int = 0


_SPILLS = {
    # Two sums of 128 x 128 leave no room for what the stores need: it is kept in memory meanwhile.
    # Of the loop's 260 instructions three do so.
    "moe.many.up_many": _Spills(48, 3),
    # Addresses of the stores, not touched in loops.
    "moe.paired.paired": _Spills(16, 0),
}


def _of_operands(constants: Constants) -> set[str]:
    return {"QGMMA"} if constants["IS_FP8"] else {"HGMMA"}


def _of_rows(num_rows: int) -> set[str]:
    return {"HGMMA"} if num_rows >= 64 else {"HMMA"}


_PRODUCTS: Mapping[str, Callable[[Constants], set[str]]] = {
    "linear.triton._few_rows": _of_operands,
    "linear.triton._many_rows": lambda _: {"QGMMA"},
    "moe.triton._up_few": _of_operands,
    "moe.triton._down_few": _of_operands,
    "moe.many.up_many": _of_operands,
    # Half a tile of 64 rows is too short for a warp group.
    "moe.many.down_many": lambda constants: (
        _of_operands(constants) | ({"HMMA"} if constants["ROWS"] < 128 else set())
    ),
    "moe.paired.paired": lambda _: {"QGMMA"},
    "moe.mxfp4._few": _of_operands,
    "moe.mxfp4._many": _of_operands,
    "moe.router._logits_of_some": lambda constants: _of_rows(constants["ROWS"]),
    "attention.few.few_rows": lambda constants: _of_rows(constants["BLOCK"]),
    "attention.many.many_rows": lambda _: {"HGMMA"},
    "segment_attention.triton._attend": lambda _: {"HGMMA"},
}


@dataclass(frozen=True, slots=True)
class _Stream:
    """Of a kernel that streams weights, where its launch has these constants."""

    name: str
    constants: Constants
    row_bytes: int
    """Bytes of weights that a step of the loop takes for each of the TILE rows."""
    limit: float
    """Of a thread's instructions for each of those bytes: a little above what they are."""


_STREAMS = (
    _Stream("linear.triton._few_rows", {"IS_FP8": True, "ROWS": 16}, 128, 4.1),
    _Stream("linear.triton._few_rows", {"IS_FP8": True, "ROWS": 32}, 128, 6.5),
    _Stream("linear.triton._few_rows", {"IS_FP8": False}, 256, 1.0),
    _Stream("moe.triton._up_few", {"IS_FP8": True}, 256, 2.5),
    _Stream("moe.triton._down_few", {"IS_FP8": True}, 128, 4.0),
    _Stream("moe.mxfp4._few", {"IS_FP8": False}, 128, 6.2),
    _Stream("moe.mxfp4._few", {"IS_FP8": True}, 128, 4.4),
)


def complaints(code: Code) -> Iterator[str]:
    """What does not hold of it."""
    allowed = _SPILLS.get(code.name, _Spills())
    if code.spilled_bytes > allowed.num_bytes:
        yield f"spills {code.spilled_bytes} bytes, at most {allowed.num_bytes}"
    if code.num_spills_in_loops > allowed.num_in_loops:
        yield (
            f"moves spilled registers {code.num_spills_in_loops} times in its loops, "
            f"at most {allowed.num_in_loops}"
        )
    if code.matrix or code.name in _PRODUCTS:
        if code.name not in _PRODUCTS:
            yield "multiplies and is not in the table of tools/sass_gates.py"
        elif set(code.matrix) != (expected := _PRODUCTS[code.name](code.constants)):
            found = ", ".join(sorted(code.matrix)) or "nothing"
            yield f"multiplies with {found} instead of {', '.join(sorted(expected))}"
    for stream in _STREAMS:
        if stream.name == code.name and stream.constants.items() <= code.constants.items():
            num_bytes = stream.row_bytes * code.constants["TILE"] / code.num_threads
            rate = code.loop / num_bytes
            if rate > stream.limit:
                yield f"takes {rate:.2f} instructions a byte of weights, at most {stream.limit}"
