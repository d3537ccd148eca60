"""How heads, columns and vocabulary are dealt to tensor-parallel ranks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.distributed.plan import HeadPlan, ParallelPlan, plan_heads

FLASH_FULL, FLASH_SLIDING, PRO = (64, 4), (64, 8), (128, 8)


@st.composite
def head_plans(draw: st.DrawFn) -> HeadPlan:
    num_kv_heads = draw(st.integers(1, 16))
    group = draw(st.integers(1, 16))
    return plan_heads(num_kv_heads * group, num_kv_heads, draw(st.integers(1, 32)))


@given(head_plans())
def test_every_query_head_is_on_exactly_one_rank(plan: HeadPlan) -> None:
    dealt = [
        head for rank in range(plan.tp_size) for head in plan.query_heads(rank) if head is not None
    ]
    assert dealt == list(range(plan.num_heads))


@given(head_plans())
def test_every_query_head_sits_beside_its_own_kv_head(plan: HeadPlan) -> None:
    group = plan.num_heads // plan.num_kv_heads
    for rank in range(plan.tp_size):
        kv_heads = plan.kv_heads(rank)
        for local, head in enumerate(plan.query_heads(rank)):
            if head is not None:
                assert kv_heads[local // plan.heads_per_slot] == head // group


@given(head_plans())
def test_every_rank_has_the_same_shape_and_no_slot_without_work(plan: HeadPlan) -> None:
    for rank in range(plan.tp_size):
        slots = plan.slots(rank)
        assert len(slots) == plan.slots_per_rank
        for slot in slots:
            assert len(slot.query_heads) == plan.heads_per_slot
            assert (slot.kv_head is None) == all(head is None for head in slot.query_heads)


@given(head_plans())
def test_no_number_of_copies_is_cheaper(plan: HeadPlan) -> None:
    group = plan.num_heads // plan.num_kv_heads

    def cost(copies: int) -> int:
        slots = -(-plan.num_kv_heads * copies // plan.tp_size)
        return slots * -(-group // copies) + 2 * slots

    costs = [cost(copies) for copies in range(1, group + 1)]
    assert cost(plan.copies) == min(costs)
    assert plan.copies == costs.index(min(costs)) + 1


@pytest.mark.parametrize("geometry", [FLASH_FULL, FLASH_SLIDING, PRO])
@pytest.mark.parametrize("tp_size", [1, 2, 4, 8, 16])
def test_natural_degrees_need_no_padding(geometry: tuple[int, int], tp_size: int) -> None:
    plan = plan_heads(*geometry, tp_size)
    assert plan.heads_per_rank * tp_size == geometry[0]
    assert plan.slots_per_rank == max(1, geometry[1] // tp_size)


@pytest.mark.parametrize(
    ("geometry", "tp_size", "copies", "heads_per_slot", "slots_per_rank"),
    [
        (FLASH_FULL, 3, 2, 8, 3),
        (FLASH_FULL, 6, 3, 6, 2),
        (FLASH_SLIDING, 3, 1, 8, 3),
        (FLASH_SLIDING, 6, 2, 4, 3),
        (PRO, 3, 1, 16, 3),
        (PRO, 6, 2, 8, 3),
        (FLASH_FULL, 8, 2, 8, 1),
        (FLASH_FULL, 16, 4, 4, 1),
    ],
)
def test_the_plans_of_the_family(
    geometry: tuple[int, int], tp_size: int, copies: int, heads_per_slot: int, slots_per_rank: int
) -> None:
    plan = plan_heads(*geometry, tp_size)
    found = (plan.copies, plan.heads_per_slot, plan.slots_per_rank)
    assert found == (copies, heads_per_slot, slots_per_rank)


def test_a_padded_slot_ends_with_zero_heads() -> None:
    # 16 query heads a KV head in three slots of six: the third serves four.
    plan = plan_heads(*FLASH_FULL, 6)
    first, second = plan.slots(1)
    assert first.kv_head == 0
    assert first.query_heads == (12, 13, 14, 15, None, None)
    assert second.kv_head == 1
    assert second.query_heads == (16, 17, 18, 19, 20, 21)


@given(st.integers(1, 20000), st.integers(1, 32))
def test_columns_are_dealt_in_order_and_in_whole_blocks(width: int, tp_size: int) -> None:
    columns = ParallelPlan(tp_size=tp_size).mlp_columns(width)
    covered = []
    for rank in range(tp_size):
        start, length = columns.start(rank), columns.num_real(rank)
        assert 0 <= length <= columns.local_size
        assert start % 128 == 0 or length == 0
        covered += [start, start + length] if length else []
    assert covered[0] == 0
    assert covered[-1] == width
    assert covered[1:-1:2] == covered[2::2]
    assert columns.local_size % 128 == 0 or columns.local_size == width


@pytest.mark.parametrize(
    ("width", "tp_size", "local"),
    [(16384, 1, 16384), (16384, 16, 1024), (2048, 16, 128), (2048, 3, 768), (16384, 6, 2816)],
)
def test_the_mlp_widths_of_the_family(width: int, tp_size: int, local: int) -> None:
    assert ParallelPlan(tp_size=tp_size).mlp_columns(width).local_size == local


@pytest.mark.parametrize(("tp_size", "local"), [(1, 152576), (2, 76288), (3, 50880), (16, 9536)])
def test_the_vocabulary_is_dealt_in_blocks_of_64(tp_size: int, local: int) -> None:
    plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_size - 1)
    vocabulary = plan.vocabulary(152576)
    assert vocabulary.local_size == local
    real = [vocabulary.num_real(rank) for rank in range(tp_size)]
    assert sum(real) == 152576


def test_one_rank_holds_everything_unpadded() -> None:
    plan = ParallelPlan()
    assert plan.mlp_columns(100).local_size == 100
    assert plan.vocabulary(100).local_size == 100
    assert plan_heads(8, 4, 1).heads_per_rank == 8
