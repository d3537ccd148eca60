"""The check of machine code complains of what it should."""

import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "sass_gates.py"


@pytest.fixture(scope="module")
def gates():
    spec = importlib.util.spec_from_file_location("sass_gates", PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules["sass_gates"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["sass_gates"]


def found(gates, name="linear.triton._few_rows", **changes):
    constants = {"IS_FP8": True, "ROWS": 16, "TILE": 64, "num_warps": 4}
    constants |= changes.pop("constants", {})
    code = {
        "name": name,
        "constants": constants,
        "num_registers": 100,
        "spilled_bytes": 0,
        "shared_bytes": 0,
        "matrix": Counter(QGMMA=4),
        "loop": 240,
        "num_spills_in_loops": 0,
    }
    return list(gates.complaints(gates.Code(**code | changes)))


def test_good_code_has_no_complaint(gates) -> None:
    assert found(gates) == []
    assert found(gates, name="norm.triton._add_rms_norm", matrix=Counter(), constants={}) == []


def test_spills_are_seen_beyond_what_a_kernel_may(gates) -> None:
    assert found(gates, spilled_bytes=8) == ["spills 8 bytes, at most 0"]
    name = "moe.many.up_many"
    assert found(gates, name, spilled_bytes=48, num_spills_in_loops=3) == []
    assert found(gates, name, spilled_bytes=48, num_spills_in_loops=4) == [
        "moves spilled registers 4 times in its loops, at most 3"
    ]


def test_another_instruction_than_is_meant_is_seen(gates) -> None:
    assert found(gates, matrix=Counter(HMMA=8, QGMMA=4)) == [
        "multiplies with HMMA, QGMMA instead of QGMMA"
    ]
    assert found(gates, matrix=Counter()) == ["multiplies with nothing instead of QGMMA"]
    assert found(gates, "attention.few.few_rows", constants={"BLOCK": 16}) == [
        "multiplies with QGMMA instead of HMMA"
    ]


def test_a_kernel_that_multiplies_is_in_the_table(gates) -> None:
    assert found(gates, "new.triton._kernel") == [
        "multiplies and is not in the table of tools/sass_gates.py"
    ]


def test_too_many_instructions_for_the_bytes_are_seen(gates) -> None:
    # 64 rows of 128 bytes are 64 bytes for each of 128 threads.
    assert found(gates, loop=262) == []
    assert found(gates, loop=320) == ["takes 5.00 instructions a byte of weights, at most 4.1"]
    assert found(gates, loop=320, constants={"TILE": 128}) == []
