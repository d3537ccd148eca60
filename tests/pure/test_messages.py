"""What passes between the processes."""

import gc

import msgspec

from mimo_engine.messages import TokenLogprobs


def test_the_collector_need_not_walk_through_log_probabilities():
    entry = TokenLogprobs(5, -0.5, 1, ((5, -0.5), (6, -1.0)))
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(entry), type=TokenLogprobs)
    assert read == entry
    # Tuples are let go by the first collection that meets them.
    gc.collect()
    gc.collect()
    assert not gc.is_tracked(read)
    assert not gc.is_tracked(read.top)
