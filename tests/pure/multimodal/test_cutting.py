"""Long sound is cut where it is quiet, and nothing of it is lost or doubled."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimo_engine.multimodal.cutting import LEAST_S, Cutter, is_silent

RATE = 1000


def chunks_of(samples, longest_s, blocks=()):
    """blocks: where the sound is split before it is pushed."""
    cutter = Cutter(RATE, longest_s)
    chunks = []
    for block in np.split(samples, sorted(blocks)):
        chunks += cutter.push(block)
    return [*chunks, *cutter.finish()]


def noise(length_s, level, seed=0):
    generator = np.random.default_rng(seed)
    return (level * generator.standard_normal(round(length_s * RATE))).astype(np.float32)


def speech(*parts):
    """(seconds, level) after (seconds, level)."""
    return np.concatenate([noise(*part, seed) for seed, part in enumerate(parts)])


SIGNALS = st.lists(
    st.tuples(st.floats(0.001, 2.5), st.sampled_from([0.0, 1e-5, 1e-3, 0.1, 1.0])),
    min_size=1,
    max_size=6,
).map(lambda parts: speech(*parts))


@settings(max_examples=150, deadline=None)
@given(SIGNALS, st.floats(1, 4), st.lists(st.integers(0, 15_000), max_size=6))
def test_chunks_tile_the_sound_whatever_the_blocks(samples, longest_s, blocks):
    chunks = chunks_of(samples, longest_s, blocks)
    np.testing.assert_array_equal(np.concatenate([*chunks, samples[:0]]), samples)
    assert all(len(chunk) <= longest_s * RATE for chunk in chunks)
    assert all(len(chunk) >= LEAST_S * RATE for chunk in chunks) or len(chunks) == 1
    whole = chunks_of(samples, longest_s)
    assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in whole]


def test_a_sound_within_the_bound_is_one_chunk_and_none_is_none():
    assert [len(chunk) for chunk in chunks_of(noise(3, 0.1), 3)] == [3000]
    assert chunks_of(noise(0, 0.1), 3) == []


def test_a_long_sound_is_cut_in_the_rest_near_the_bound():
    samples = speech((2.4, 0.1), (0.3, 1e-3), (2.6, 0.1), (0.4, 1e-3), (1, 0.1))
    first, second, third = np.cumsum([len(chunk) for chunk in chunks_of(samples, 3)])
    assert 2400 < first < 2700
    assert 5300 < second < 5700
    assert third == len(samples)


def test_without_a_rest_the_cut_is_in_the_last_third():
    lengths = [len(chunk) for chunk in chunks_of(np.ones(10_000, np.float32), 3)]
    assert all(2000 <= length <= 3000 for length in lengths[:-1])


@pytest.mark.parametrize(
    ("samples", "silent"),
    [
        (np.zeros(5000, np.float32), True),
        (noise(3, 1e-4), True),
        (noise(3, 1e-3), False),
        (np.concatenate([np.zeros(4999, np.float32), [1.0]]).astype(np.float32), False),
        (np.zeros(0, np.float32), True),
    ],
)
def test_silence_is_what_lies_far_below_the_hiss_of_a_room(samples, silent):
    assert is_silent(samples, RATE) is silent
