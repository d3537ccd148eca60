"""Memory files from one end of a socket pair to the other."""

import os
import resource
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mimo_engine.engine.features import FeatureReceiver, FeatureSender, feature_channel
from mimo_engine.errors import QueueFullError
from mimo_engine.messages import MediaItem
from mimo_engine.multimodal.shared_arrays import SharedArrays


@pytest.fixture
def channel():
    ours, theirs = feature_channel()
    sender, receiver = FeatureSender(ours), FeatureReceiver(theirs)
    yield sender, receiver
    sender.close()
    theirs.close()


def features(number: int) -> SharedArrays:
    """Two arrays of two types: a list of tensors travels like one."""
    shared = SharedArrays()
    shared.add((2, 3), "float32")[:] = number
    shared.add((number % 3, 4), "bfloat16")[:] = number
    return shared


def item(shared: SharedArrays) -> MediaItem:
    return MediaItem(
        kind="vision",
        content_hash=bytes(16),
        num_rows=1,
        unit_rows=1,
        spans=[],
        arrays=list(shared.specs),
    )


def num_open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_files_arrive_in_order_as_they_were(channel):
    sender, receiver = channel
    sent = [features(number) for number in range(150)]
    sender.send("a", sent)
    got = receiver.take("a", [item(shared) for shared in sent])
    for number, (mine, theirs) in enumerate(zip(sent, got, strict=True)):
        assert [array.tolist() for array in theirs.arrays] == [a.tolist() for a in mine.arrays]
        assert theirs.arrays[0][0, 0] == number
        assert theirs.content_hash("x") == mine.content_hash("x")


def test_a_message_that_overtakes_its_files_waits_for_them(channel):
    sender, receiver = channel
    shared = features(3)
    threading.Timer(0.05, sender.send, ("late", [shared])).start()
    assert receiver.take("late", [item(shared)])[0].arrays[0][1, 2] == 3


def test_requests_do_not_get_each_others_files(channel):
    sender, receiver = channel
    first, second = features(1), features(2)
    sender.send("a", [first])
    sender.send("b", [second, first])
    assert [s.arrays[0][0, 0] for s in receiver.take("b", [item(second), item(first)])] == [2, 1]
    assert receiver.take("a", [item(first)])[0].arrays[0][0, 0] == 1


def test_no_media_wait_for_nothing(channel):
    assert channel[1].take("text", []) == []


def test_a_sender_that_is_gone_ends_the_wait():
    ours, theirs = feature_channel()
    sender, receiver = FeatureSender(ours), FeatureReceiver(theirs)
    sender.close()
    with pytest.raises(QueueFullError, match="try later"):
        receiver.take("a", [item(features(1))])
    theirs.close()


def test_a_receiver_that_is_gone_does_not_hold_the_sender_up():
    ours, theirs = feature_channel()
    sender = FeatureSender(ours)
    theirs.close()
    sender.send("a", [features(1)])
    sender.close()


def test_running_out_of_descriptors_is_an_answer_and_not_a_hang(channel):
    sender, receiver = channel
    sent = [features(number) for number in range(40)]
    items = [item(shared) for shared in sent]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
    tenth_free = [fd for fd in range(len(taken) + 20) if fd not in taken][10]
    resource.setrlimit(resource.RLIMIT_NOFILE, (tenth_free, hard))
    try:
        sender.send("a", sent)
        with pytest.raises(QueueFullError):
            receiver.take("a", items)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    sender.send("b", sent)
    assert len(receiver.take("b", items)) == 40


def test_what_is_dropped_is_closed(channel):
    sender, receiver = channel
    before = num_open_files()
    for number in range(20):
        sent = [features(number) for _ in range(5)]
        sender.send(str(number), sent)
        got = receiver.take(str(number), [item(shared) for shared in sent])
        assert all(shared.fileno() > 0 for shared in got)
    del sent, got
    deadline = time.monotonic() + 10
    while num_open_files() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert num_open_files() == before


def test_a_file_shorter_than_its_description_is_refused():
    shared = features(2)
    spec = shared.specs[0]
    longer = type(spec)(spec.dtype, (10_000, 10), 0)
    with pytest.raises(ValueError):
        SharedArrays.from_fd(os.dup(shared.fileno()), [longer])


def test_the_hash_tells_shapes_types_and_kinds_apart():
    made = []
    for shape, dtype in (((2, 6), "float32"), ((3, 4), "float32"), ((2, 6), "bfloat16")):
        shared = SharedArrays()
        shared.add(shape, dtype)
        made.append(shared)
    hashes = {shared.content_hash(kind) for shared in made for kind in ("vision", "audio")}
    assert len(hashes) == 6
    again = SharedArrays()
    again.add((2, 6), "float32")[:] = np.float32(0)
    assert again.content_hash("vision") in hashes
