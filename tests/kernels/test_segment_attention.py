"""What the cases do not say of the towers' attention in Triton."""

import pytest
import torch

from mimo_engine.kernels.segment_attention.triton import segment_attention


def make(num_rows, device, *, num_heads=8, num_kv_heads=2, size=64):
    torch.manual_seed(0)
    q = torch.randn(num_rows, num_heads, size, device=device).bfloat16()
    k, v = torch.randn(2, num_rows, num_kv_heads, size, device=device).bfloat16()
    return q, k, v


@pytest.mark.parametrize("bounds", [(None, None), (None, 0), (20, 20)])
def test_no_bit_of_a_segment_depends_on_what_else_is_in_the_call(bounds, device, poisoned):
    lengths = [70, 33, 100]
    q, k, v = make(sum(lengths), device)
    arguments = {"left": bounds[0], "right": bounds[1], "softmax_scale": 0.125}
    together = segment_attention(q, k, v, lengths, **arguments)
    parts = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    alone = [segment_attention(*own, [own[0].shape[0]], **arguments) for own in parts]
    assert together.equal(torch.cat(alone))


def test_a_segment_of_no_numbers_stays_alone(device, poisoned):
    lengths = [40, 40, 40]
    q, k, v = make(120, device)
    for x in (q, k, v):
        x[40:80] = float("nan")
    out = segment_attention(q, k, v, lengths, left=None, right=None, softmax_scale=0.125)
    assert out[40:80].isnan().all()
    assert not torch.cat((out[:40], out[80:])).isnan().any()


def test_sinks_from_nothing_to_everything_give_numbers(device, poisoned):
    q, k, v = make(50, device)
    outs = {
        sink: segment_attention(
            q,
            k,
            v,
            [50],
            left=9,
            right=9,
            sinks=torch.full((8,), sink, device=device),
            softmax_scale=0.125,
        )
        for sink in (float("-inf"), 1e4)
    }
    without = segment_attention(q, k, v, [50], left=9, right=9, softmax_scale=0.125)
    assert outs[float("-inf")].equal(without)
    assert (outs[1e4] == 0).all()


def test_no_rows_at_all_are_an_empty_result(device):
    q, k, v = make(0, device)
    for lengths in ([], [0, 0]):
        out = segment_attention(q, k, v, lengths, left=None, right=None, softmax_scale=1.0)
        assert out.shape == q.shape


def test_other_types_than_bfloat16_are_refused(device):
    q, k, v = (x.float() for x in make(4, device))
    with pytest.raises(ValueError, match=r"takes bfloat16, not torch.float32.*torch form"):
        segment_attention(q, k, v, [4], left=None, right=None, softmax_scale=1.0)
