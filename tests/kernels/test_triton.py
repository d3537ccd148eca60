"""Every operator's Triton form equals its reference, on all cases that the place can compute."""

import pytest
import torch
from kernel_place import ON_GPU

from mimo_engine.kernels.cases import OPS
from mimo_engine.kernels.op import relative_error

CASES = [
    pytest.param(op, case, seed, id=f"{op.name}: {case.name}, seed {seed}")
    for op in OPS
    for case in op.cases
    if case.is_small or ON_GPU
    for seed in range(3 if ON_GPU and case.is_small else 1)
]


def copied(value):
    """The same value in other memory; strides too are kept."""
    return value.clone() if isinstance(value, torch.Tensor) else value


@pytest.mark.parametrize(("op", "case", "seed"), CASES)
def test_triton_is_the_reference(op, case, seed, device, poisoned) -> None:
    torch.manual_seed(seed)
    arguments = case.make(device)
    other = {name: copied(value) for name, value in arguments.items()}
    expected = op.reference(**arguments)
    got = op.triton(**other)
    assert len(got) == len(expected)
    for mine, wanted in zip(got, expected, strict=True):
        assert relative_error(mine, wanted) <= op.tolerance
