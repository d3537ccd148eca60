"""The quantiser's search: against its definition, in ties, and where fp32 products would err."""

from fractions import Fraction

import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.kernels.residual_vq import residual_codes


def exact_codes(features: torch.Tensor, codebooks: list[torch.Tensor]) -> list[list[int]]:
    """Distances as fractions; only the residual is rounded, to fp32, as its definition says."""
    rows = []
    for residual in features:
        row = []
        for codebook in codebooks:
            distances = [
                sum(
                    (Fraction(a) - Fraction(b)) ** 2
                    for a, b in zip(residual.tolist(), entry.tolist(), strict=True)
                )
                for entry in codebook
            ]
            row.append(distances.index(min(distances)))
            residual = residual - codebook[row[-1]]
        rows.append(row)
    return rows


def test_the_toy_of_the_definition():
    first = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    second = torch.tensor([[0.0, 0.0], [0.25, 0.0]])
    point = torch.tensor([[1.2, 0.1]])
    assert residual_codes(point, [first, second]).tolist() == [[1, 1]]
    # What is left, (-0.05, 0.1), is nearest to itself.
    rest = torch.tensor([[0.0, 0.1], [-0.05, 0.1], [0.0, 0.0]])
    assert residual_codes(point, [first, second, rest]).tolist() == [[1, 1, 1]]


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_codes_are_those_of_exact_arithmetic(seed: int, scale: float):
    torch.manual_seed(seed)
    features = scale * torch.randn(4, 5)
    codebooks = [scale * torch.randn(size, 5) / level for level, size in ((1, 9), (2, 6), (4, 3))]
    assert residual_codes(features, codebooks).tolist() == exact_codes(features, codebooks)


def test_entries_are_told_apart_where_fp32_products_are_equal():
    """Squares near 1e8 round to multiples of 8 in fp32; the distances differ by 1."""
    point = torch.tensor([[10_000.0, 1.0]])
    codebook = torch.tensor([[9_999.0, 2.0], [9_999.0, 1.0], [10_001.0, 2.0]])
    squares = (point @ codebook.T)[0] * -2 + codebook.square().sum(1)
    assert squares[0] == squares[1]
    assert residual_codes(point, [codebook]).item() == 1


def test_the_first_of_equal_entries_wins_wherever_they_stand():
    torch.manual_seed(0)
    entry = torch.randn(64)
    for first, second in ((0, 1), (3, 1023), (511, 1000), (1021, 1022)):
        codebook = torch.randn(1024, 64)
        codebook[first] = codebook[second] = entry
        codes = residual_codes(entry + 0.01 * torch.randn(37, 64), [codebook])
        assert codes.unique().tolist() == [first]


def test_a_code_does_not_depend_on_the_rows_beside_it():
    torch.manual_seed(0)
    features = torch.randn(200, 32)
    codebooks = [torch.randn(128, 32), torch.randn(64, 32) / 2]
    together = residual_codes(features, codebooks)
    apart = torch.cat([residual_codes(row[None], codebooks) for row in features])
    assert torch.equal(together, apart)


def test_features_of_bf16_are_searched_in_fp32():
    torch.manual_seed(0)
    features = torch.randn(50, 32).bfloat16()
    codebooks = [torch.randn(128, 32), torch.randn(64, 32) / 2]
    assert torch.equal(
        residual_codes(features, codebooks), residual_codes(features.float(), codebooks)
    )
