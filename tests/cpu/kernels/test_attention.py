"""Attention against a slow implementation, written per query and per head in float64."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.kernels.attention import AttentionGroup, attention, packed_groups, write_kv
from mimo_engine.kernels.attention import reference as kernel


def slow_attention(q, k, v, positions, window, sink):
    """q [Hq, Dk] of the last position in k [L, Hkv, Dk], v [L, Hkv, Dv]; float64, one at a time."""
    out = torch.zeros(q.shape[0], v.shape[-1], dtype=torch.float64)
    ratio = q.shape[0] // k.shape[1]
    query_position = positions[-1]
    for head in range(q.shape[0]):
        scores = {}
        for index, position in enumerate(positions):
            if window is None or query_position - position < window:
                dot = float(q[head].double() @ k[index, head // ratio].double())
                scores[index] = dot / math.sqrt(q.shape[1])
        peak = max(scores.values())
        total = sum(math.exp(score - peak) for score in scores.values())
        if sink is not None:
            total += math.exp(float(sink[head]) - peak)
        for index, score in scores.items():
            weight = math.exp(score - peak) / total
            out[head] += weight * v[index, head // ratio].double()
    return out


@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    window=st.sampled_from([None, 1, 3, 5]),
    with_sink=st.booleans(),
    ratio=st.sampled_from([1, 3]),
    seed=st.integers(0, 1000),
)
def test_packed_sequences_attend_to_themselves_alone(lengths, window, with_sink, ratio, seed):
    torch.manual_seed(seed)
    num_rows = sum(lengths)
    q = torch.randn(num_rows, 2 * ratio, 12)
    k, v = torch.randn(num_rows, 2, 12), torch.randn(num_rows, 2, 8)
    sink = torch.randn(2 * ratio) if with_sink else None
    got = attention(q, k, v, packed_groups(lengths), num_visible_tokens=window, sink=sink)
    first = 0
    for length in lengths:
        for i in range(length):
            keys = slice(first, first + i + 1)
            expected = slow_attention(
                q[first + i], k[keys], v[keys], list(range(i + 1)), window, sink
            )
            torch.testing.assert_close(got[first + i].double(), expected, atol=1e-5, rtol=1e-5)
        first += length


@pytest.mark.parametrize("window", [None, 4])
def test_a_chunk_reads_earlier_keys_from_scattered_slots_and_nothing_else(window):
    torch.manual_seed(0)
    length, start, num_slots = 11, 6, 40
    k, v = torch.randn(length, 2, 12), torch.randn(length, 2, 8)
    q = torch.randn(length, 4, 12)
    slots = torch.randperm(num_slots)[:length]
    # What is not this sequence's is poison: any weight on it shows.
    k_pool, v_pool = torch.full((num_slots, 2, 12), 1e4), torch.full((num_slots, 2, 8), 1e4)
    write_kv(k_pool, v_pool, k, v, slots)
    kv_first = 0 if window is None else start - window + 1
    group = AttentionGroup(
        rows=torch.arange(length - start)[None],
        first_position=torch.tensor([start]),
        kv_slots=slots[None, kv_first:],
        kv_first=torch.tensor([kv_first]),
    )
    got = attention(q[start:], k_pool, v_pool, [group], num_visible_tokens=window, sink=None)
    for i in range(start, length):
        expected = slow_attention(q[i], k[: i + 1], v[: i + 1], list(range(i + 1)), window, None)
        torch.testing.assert_close(got[i - start].double(), expected, atol=1e-5, rtol=1e-5)


def test_the_last_visible_key_counts_and_the_next_does_not():
    """A window of 3: the key two before the query is seen, the key three before is not."""
    q = torch.zeros(1, 1, 4)
    k = torch.zeros(6, 1, 4)
    v = torch.eye(6)[:, None, :]
    group = AttentionGroup(
        rows=torch.zeros(1, 1, dtype=torch.int64),
        first_position=torch.tensor([5]),
        kv_slots=torch.arange(6)[None],
        kv_first=torch.tensor([0]),
    )
    out = attention(q, k, v, [group], num_visible_tokens=3, sink=None)
    torch.testing.assert_close(out[0, 0], torch.tensor([0, 0, 0, 1 / 3, 1 / 3, 1 / 3]))


def test_blocks_of_query_rows_change_nothing(monkeypatch):
    torch.manual_seed(1)
    q, k, v = torch.randn(50, 4, 12), torch.randn(50, 2, 12), torch.randn(50, 2, 8)
    groups = packed_groups([50])
    whole = attention(q, k, v, groups, num_visible_tokens=7, sink=torch.randn(4))
    torch.manual_seed(1)
    monkeypatch.setattr(kernel, "_MAX_SCORE_ELEMENTS", 1)
    q, k, v = torch.randn(50, 4, 12), torch.randn(50, 2, 12), torch.randn(50, 2, 8)
    rows = attention(q, k, v, groups, num_visible_tokens=7, sink=torch.randn(4))
    torch.testing.assert_close(whole, rows)
