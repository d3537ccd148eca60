import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.cache.pages import PagePool


def test_pages_are_handed_out_in_order_and_the_last_freed_goes_first():
    pool = PagePool(4)
    assert pool.acquire(3) == [0, 1, 2]
    pool.release(1)
    pool.release(0)
    assert pool.acquire(3) == [0, 1, 3]
    assert pool.num_free == 0


def test_a_shared_page_is_free_when_its_last_holder_lets_go():
    pool = PagePool(1)
    (page,) = pool.acquire(1)
    pool.share(page)
    assert pool.release(page) == 1
    assert pool.num_free == 0
    assert pool.release(page) == 0
    assert pool.num_free == 1


def test_taking_too_many_and_freeing_twice_are_our_own_errors():
    pool = PagePool(2)
    with pytest.raises(AssertionError):
        pool.acquire(3)
    (page,) = pool.acquire(1)
    pool.release(page)
    with pytest.raises(AssertionError):
        pool.release(page)
    with pytest.raises(AssertionError):
        pool.share(page)


def test_check_finds_a_wrong_count():
    pool = PagePool(3)
    pages = pool.acquire(2)
    pool.check({pages[0]: 1, pages[1]: 1})
    for holders in ({pages[0]: 1}, {pages[0]: 2, pages[1]: 1}, {0: 1, 1: 1, 2: 1}):
        with pytest.raises(AssertionError):
            pool.check(holders)


@given(st.lists(st.tuples(st.sampled_from(["acquire", "share", "release"]), st.integers(0, 9))))
def test_used_and_free_pages_are_all_pages(operations):
    pool = PagePool(6)
    held: list[int] = []
    for operation, number in operations:
        if operation == "acquire" and number <= pool.num_free:
            held += pool.acquire(number)
        elif operation == "share" and held:
            page = held[number % len(held)]
            pool.share(page)
            held.append(page)
        elif operation == "release" and held:
            pool.release(held.pop(number % len(held)))
        pool.check({page: held.count(page) for page in held})
