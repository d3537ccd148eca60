"""Cuts against plain indexing."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.distributed.shard import Cut, Run, cut_blocks, cut_heads, joined


def entries(cut: Cut) -> list[int | None]:
    """The source entry of each local entry, run by run."""
    found: list[int | None] = [None] * cut.size
    for run in cut.runs:
        for i in range(run.length):
            assert found[run.dst + i] is None
            found[run.dst + i] = run.src + i
    return found


@st.composite
def permuted_heads(draw: st.DrawFn) -> tuple[list[int | None], int]:
    heads = draw(st.lists(st.one_of(st.none(), st.integers(0, 9)), min_size=1, max_size=12))
    return heads, draw(st.integers(1, 5))


@given(permuted_heads())
def test_heads_are_cut_in_the_given_order(case: tuple[list[int | None], int]) -> None:
    heads, head_dim = case
    expected: list[int | None] = []
    for head in heads:
        expected += [None if head is None else head * head_dim + i for i in range(head_dim)]
    assert entries(cut_heads(0, heads, head_dim)) == expected


@given(permuted_heads())
def test_gather_copies_the_runs_and_zeroes_the_rest(case: tuple[list[int | None], int]) -> None:
    heads, head_dim = case
    source = torch.arange(1, 10 * head_dim + 1)
    gathered = cut_heads(0, heads, head_dim).gather(source)
    expected = [0 if i is None else i + 1 for i in entries(cut_heads(0, heads, head_dim))]
    assert gathered.tolist() == expected


def test_neighbouring_heads_become_one_run() -> None:
    cut = cut_heads(1, [4, 5, 6, None, 0], 192)
    assert cut == Cut(1, 960, (Run(768, 0, 576), Run(0, 768, 192)))


@given(permuted_heads(), st.permutations(range(10)))
def test_a_cut_after_a_cut_is_their_composition(
    case: tuple[list[int | None], int], order: list[int]
) -> None:
    heads, head_dim = case
    stored = cut_heads(0, order, head_dim)
    outer = cut_heads(0, heads, head_dim)
    source = torch.arange(1, 10 * head_dim + 1)
    both = outer.after(stored)
    assert torch.equal(both.gather(source), outer.gather(stored.gather(source)))
    assert both.size == outer.size


@given(st.lists(permuted_heads(), min_size=1, max_size=3))
def test_joined_cuts_lie_one_after_the_other(cases: list[tuple[list[int | None], int]]) -> None:
    cuts = [cut_heads(0, heads, head_dim) for heads, head_dim in cases]
    source = torch.arange(1, 60)
    expected = torch.cat([cut.gather(source) for cut in cuts])
    assert torch.equal(joined(cuts).gather(source), expected)


@given(st.integers(1, 2000), st.integers(1, 8))
def test_the_blocks_of_all_ranks_make_up_the_whole(width: int, tp_size: int) -> None:
    source = torch.arange(1, width + 1)
    pieces = []
    for rank in range(tp_size):
        columns = ParallelPlan(tp_size=tp_size).mlp_columns(width)
        pieces.append(cut_blocks(0, columns, rank).gather(source))
        assert len(pieces[-1]) == columns.local_size
    together = torch.cat(pieces)
    assert torch.equal(together[:width], source)
    assert not together[width:].any()


def test_a_coarse_cut_counts_units() -> None:
    cut = Cut(1, 640, (Run(256, 0, 256), Run(1024, 384, 200)))
    assert cut.coarse(128) == Cut(1, 5, (Run(2, 0, 2), Run(8, 3, 2)))


def test_scatter_keeps_what_no_run_names() -> None:
    out = torch.full((2, 4), 7.0)
    Cut(1, 4, (Run(1, 2, 2),)).scatter_into(out, torch.arange(6.0).view(2, 3))
    assert out.tolist() == [[7, 7, 1, 2], [7, 7, 4, 5]]
