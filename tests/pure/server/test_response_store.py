"""What the store of responses holds, after any use of it."""

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.server.responses.store import KeptResponse, ResponseStore


def kept(number, parent=None, size=0):
    output = [{"type": "message", "id": f"msg_{number}", "content": "x" * size}]
    return KeptResponse(
        id=f"resp_{number}",
        parent=parent,
        input=msgspec.json.encode([{"type": "message", "id": f"in_{number}", "role": "user"}]),
        response=msgspec.json.encode({"id": f"resp_{number}", "output": output}),
        output_ids=[f"msg_{number}"],
    )


# What is done: "add" with the number of the response to continue and a size, "find" or "remove".
USES = st.lists(
    st.tuples(st.sampled_from(["add", "find", "remove"]), st.integers(0, 12), st.integers(0, 3000)),
    max_size=30,
)


@given(uses=USES, max_responses=st.integers(1, 4), max_bytes=st.integers(1000, 20000))
def test_bytes_are_those_of_what_can_be_reached_and_within_the_bound(
    uses, max_responses, max_bytes
):
    store = ResponseStore(max_responses, max_bytes)
    added = []
    for number, (use, other, size) in enumerate(uses):
        name = f"resp_{other}"
        if use == "add":
            one = kept(number, store.find(name), size)
            is_kept = store.add(one)
            assert is_kept == (one.num_bytes_in_all <= max_bytes)
            assert (store.find(one.id) is one) == is_kept
            added.append(one)
        elif use == "find":
            found = store.find(name)
            assert found is None or found.id == name
        else:
            found = store.find(name)
            if found is not None:
                store.remove(found)
            assert store.find(name) is None
        by_id = {one.id: one for one in added if store.find(one.id) is not None}
        held = {id(one): one for last in by_id.values() for one in last.line()}
        assert store.num_bytes == sum(one.num_bytes for one in held.values()) <= max_bytes
        assert len(by_id) <= max_responses
        for one in added:
            item = store.find_item(one.output_ids[0])
            assert (item is not None) == (id(one) in held)


def test_a_conversation_outlives_its_first_response():
    store = ResponseStore(10, 10**6)
    first = kept(1)
    second = kept(2, first)
    assert store.add(first)
    assert store.add(second)
    store.remove(first)
    assert store.find("resp_1") is None
    assert [one.id for one in second.line()] == ["resp_1", "resp_2"]
    assert store.find_item("msg_1") is not None
    store.remove(second)
    assert (store.num_bytes, store.find_item("msg_1")) == (0, None)
