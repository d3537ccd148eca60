"""Attention in segments: against its dense definition, in independence, and in what it costs."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from mimo_engine.kernels.segment_attention import (
    SegmentPlan,
    reference,
    segment_attention,
    segment_attention_reference,
)
from mimo_engine.kernels.segment_attention.plan import TILE_ROWS

VISION, AUDIO, CAUSAL, FULL = (64, 64), (128, 0), (None, 0), (None, None)
BLOCK = 64
EDGES = (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 1, 4 * BLOCK)
# fp32: sums of some hundred terms in another order. bf16: one rounding of the output, and in the
# fused kernels also of the weights (2^-8 each).
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float64: 1e-12}


def make(num_rows, *, num_heads=4, num_kv_heads=2, head_dim=16, dtype=torch.float32, seed=0):
    """q, k, v and sinks, of which the largest weigh about as much as a few keys."""
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(num_rows, num_heads, head_dim, generator=generator)
    k, v = torch.randn(2, num_rows, num_kv_heads, head_dim, generator=generator)
    return q.to(dtype), k.to(dtype), v.to(dtype), 2 * torch.randn(num_heads, generator=generator)


def assert_equals_reference(q, k, v, lengths, **arguments):
    got = segment_attention(q, k, v, lengths, **arguments)
    exact = [x.double() for x in (q, k, v)]
    expected = segment_attention_reference(*exact, lengths, **arguments)
    assert got.dtype == q.dtype
    assert got.shape == q.shape
    tolerance = TOLERANCE[q.dtype]
    torch.testing.assert_close(got.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sink_mode", [None, "extra_column", "key0"])
@pytest.mark.parametrize("bounds", [VISION, AUDIO, CAUSAL, FULL, (3, 5), (0, 0), (10**6, 7)])
def test_segments_around_the_size_of_a_block_equal_the_dense_definition(bounds, sink_mode, dtype):
    lengths = [*EDGES, 3, 3, 3]
    q, k, v, sinks = make(sum(lengths), dtype=dtype)
    left, right = bounds
    assert_equals_reference(
        q,
        k,
        v,
        lengths,
        left=left,
        right=right,
        sinks=None if sink_mode is None else sinks,
        sink_mode=sink_mode or "extra_column",
        softmax_scale=16**-0.5,
    )


@given(
    lengths=st.lists(st.integers(0, 40), max_size=6),
    left=st.one_of(st.none(), st.integers(0, 45)),
    right=st.one_of(st.none(), st.integers(0, 45)),
    sink_mode=st.sampled_from([None, "extra_column", "key0"]),
    ratio=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([4, 8]),
    seed=st.integers(0, 1000),
)
def test_any_window_over_any_segments_equals_the_dense_definition(
    lengths, left, right, sink_mode, ratio, head_dim, seed
):
    q, k, v, sinks = make(
        sum(lengths), num_heads=2 * ratio, head_dim=head_dim, dtype=torch.float64, seed=seed
    )
    arguments = {
        "left": left,
        "right": right,
        "sinks": None if sink_mode is None else sinks,
        "sink_mode": sink_mode or "key0",
        "softmax_scale": 0.4,
    }
    if sum(lengths) == 0:
        assert segment_attention(q, k, v, lengths, **arguments).shape == q.shape
        return
    assert_equals_reference(q, k, v, lengths, **arguments)


def test_the_definition_is_that_of_a_loop_over_queries():
    """The reference itself, against the formulas written out for one query and head at a time."""
    lengths, left, right, scale = [5, 1, 9], 2, 3, 0.3
    q, k, v, sinks = make(sum(lengths), dtype=torch.float64)
    for mode in ("extra_column", "key0"):
        got = segment_attention_reference(
            q,
            k,
            v,
            lengths,
            left=left,
            right=right,
            sinks=sinks,
            sink_mode=mode,
            softmax_scale=scale,
        )
        start = 0
        for length in lengths:
            for i in range(length):
                for head in range(4):
                    top, bottom = torch.zeros(16, dtype=torch.float64), 0.0
                    for j in range(max(0, i - left), min(length, i + right + 1)):
                        score = scale * float(q[start + i, head] @ k[start + j, head // 2])
                        if mode == "key0" and j == 0:
                            score += float(sinks[head])
                        top += math.exp(score) * v[start + j, head // 2]
                        bottom += math.exp(score)
                    if mode == "extra_column":
                        bottom += math.exp(float(sinks[head]))
                    torch.testing.assert_close(got[start + i, head], top / bottom)
            start += length


@pytest.mark.parametrize("bounds", [FULL, CAUSAL, VISION])
def test_an_explicit_softmax_scale_is_honoured(bounds):
    q, k, v, _ = make(300)
    left, right = bounds
    by_scale = segment_attention(q, k, v, [300], left=left, right=right, softmax_scale=1.0)
    by_query = segment_attention(4 * q, k, v, [300], left=left, right=right, softmax_scale=0.25)
    usual = segment_attention(q, k, v, [300], left=left, right=right, softmax_scale=0.25)
    torch.testing.assert_close(by_scale, by_query)
    assert (by_scale - usual).abs().max() > 0.1
    assert_equals_reference(q, k, v, [300], left=left, right=right, softmax_scale=1.0)


@pytest.mark.parametrize("bounds", [FULL, CAUSAL, VISION, AUDIO])
def test_a_segment_does_not_depend_on_what_else_is_in_the_call(bounds):
    lengths = [70, 200, 200, 200, 1, 33, 200]
    q, k, v, sinks = make(sum(lengths))
    arguments = {"left": bounds[0], "right": bounds[1], "softmax_scale": 0.25}
    if None not in bounds:
        arguments["sinks"] = sinks
    together = segment_attention(q, k, v, lengths, **arguments)
    alone = [
        segment_attention(*parts, [len(parts[0])], **arguments)
        for parts in zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    ]
    # The same sums; a library may order them by how many products it is given at once.
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=1e-6)


def test_the_last_visible_key_on_each_side_counts_and_the_next_does_not():
    q, k = torch.zeros(40, 1, 8), torch.zeros(40, 1, 8)
    v = torch.zeros(40, 1, 8)
    out = {}
    for marked in (16, 17, 23, 24):
        value = v.clone()
        value[marked] = 1
        got = segment_attention(q, k, value, [40], left=3, right=3, softmax_scale=1.0)
        out[marked] = got[20, 0, 0].item()
    assert out == {16: 0, 17: pytest.approx(1 / 7), 23: pytest.approx(1 / 7), 24: 0}


def test_a_sink_on_key_0_reaches_only_the_queries_that_see_it():
    q, k, v, sinks = make(200)
    arguments = {"left": 64, "right": 64, "softmax_scale": 0.25}
    without = segment_attention(q, k, v, [200], **arguments)
    with_sinks = segment_attention(q, k, v, [200], sinks=sinks, sink_mode="key0", **arguments)
    changed = (with_sinks != without).flatten(1).any(dim=1)
    assert changed.tolist() == [True] * 65 + [False] * 135


def test_large_logits_and_sinks_do_not_overflow():
    q, k, v, sinks = make(100)
    arguments = {"left": 9, "right": 9, "softmax_scale": 50.0}
    assert_equals_reference(q, k, v, [100], sinks=100 * sinks, **arguments)
    out = segment_attention(q, k, v, [100], sinks=sinks + 1e4, **arguments)
    assert (out == 0).all()


@pytest.mark.parametrize("bounds", [FULL, CAUSAL, VISION])
@pytest.mark.parametrize("max_elements", [1, 3000, 40_000])
def test_blocks_bounded_by_memory_change_nothing(bounds, max_elements, monkeypatch):
    lengths = [150, 20, 20, 20]
    monkeypatch.setattr(reference, "_MAX_SCORE_ELEMENTS", max_elements)
    q, k, v, sinks = make(sum(lengths))
    assert_equals_reference(
        q, k, v, lengths, left=bounds[0], right=bounds[1], sinks=sinks, softmax_scale=0.25
    )


@pytest.mark.parametrize("sink_mode", ["extra_column", "key0"])
@pytest.mark.parametrize("lengths", [[7], [33, 33], [20, 50, 1]])
def test_gradients_are_those_of_the_dense_definition(lengths, sink_mode):
    """Lengths that leave rows of padding, whose gradients must not be NaN."""
    inputs = make(sum(lengths), dtype=torch.float64)
    gradients = []
    for attend in (segment_attention, segment_attention_reference):
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        q, k, v, sinks = leaves
        out = attend(
            q, k, v, lengths, left=5, right=4, sinks=sinks, sink_mode=sink_mode, softmax_scale=0.3
        )
        (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
        gradients.append([x.grad for x in leaves])
    for got, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned, views excepted."""

    def __init__(self):
        super().__init__()
        self.num_elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage().nbytes() // tensor.element_size()
                self.num_elements = max(self.num_elements, storage)
        return out


def test_a_windowed_call_costs_the_same_for_every_row_and_never_holds_all_scores():
    """At the real geometry, on tensors without data, so that a 32,768-patch image is no matter."""
    flops, largest = [], []
    sizes = (2048, 8192, 32768)
    for num_rows in sizes:
        q = torch.empty(num_rows, 32, 64, device="meta")
        k = v = torch.empty(num_rows, 8, 64, device="meta")
        sinks = torch.empty(32, device="meta")
        with FlopCounterMode(display=False) as counter, LargestTensor() as tensors:
            segment_attention(
                q, k, v, [num_rows], left=64, right=64, sinks=sinks, softmax_scale=0.125
            )
        flops.append(counter.get_total_flops())
        largest.append(tensors.num_elements)
    assert [after / before for before, after in pairwise(flops)] == [4, 4]
    # Two products of 64 queries with 192 keys, a query of each of 32 heads being 64 wide.
    assert flops[-1] == 2 * sizes[-1] * 192 * 32 * 64 * 2
    assert largest[-1] <= sizes[-1] * 32 * 64


@pytest.mark.parametrize("bounds", [FULL, CAUSAL])
def test_a_full_call_never_holds_all_scores(bounds):
    num_rows = 3000
    q, k, v, _ = make(num_rows, num_heads=4, num_kv_heads=2, head_dim=8)
    with LargestTensor() as tensors:
        segment_attention(q, k, v, [num_rows], left=None, right=bounds[1], softmax_scale=0.3)
    assert tensors.num_elements <= num_rows * 4 * 8


def test_full_attention_with_sinks_holds_a_bounded_number_of_scores():
    num_rows = 16384
    q = torch.empty(num_rows, 32, 64, device="meta")
    k = v = torch.empty(num_rows, 8, 64, device="meta")
    sinks = torch.empty(32, device="meta")
    with LargestTensor() as tensors:
        segment_attention(
            q, k, v, [num_rows], left=None, right=None, sinks=sinks, softmax_scale=0.1
        )
    assert tensors.num_elements <= num_rows * 32 * 64


@given(
    lengths=st.lists(st.integers(0, 300), max_size=6),
    heads=st.sampled_from([(1, 1), (32, 8), (6, 2), (40, 1)]),
)
def test_a_plan_is_the_lengths_and_has_each_query_in_one_tile(lengths, heads):
    num_heads, num_kv_heads = heads
    plan = SegmentPlan.of(lengths, num_heads=num_heads, num_kv_heads=num_kv_heads, device="cpu")
    assert list(plan) == lengths
    assert (len(plan), sum(plan)) == (len(lengths), sum(lengths))
    num_queries = TILE_ROWS // plan.packed_heads
    rows = []
    for start, length, first in plan.tiles.tolist():
        assert first < length
        rows += range(start + first, start + min(first + num_queries, length))
    assert sorted(rows) == list(range(sum(lengths)))
    assert plan.tiles.dtype == torch.int32


def test_a_plan_is_taken_where_lengths_are():
    lengths = [30, 30, 7]
    q, k, v, _ = make(67)
    plan = SegmentPlan.of(lengths, num_heads=4, num_kv_heads=2, device="cpu")
    for attend in (segment_attention, segment_attention_reference):
        got, expected = (
            attend(q, k, v, segments, left=3, right=0, softmax_scale=0.25)
            for segments in (plan, lengths)
        )
        assert got.equal(expected)
