"""Rope and the write of K and V against the operators that did it one by one."""

import torch

from mimo_engine.kernels.attention import write_kv
from mimo_engine.kernels.rope import apply_rope, rope_tables
from mimo_engine.kernels.rope_kv import inverse_frequencies, rope_and_write


def test_far_positions_have_the_angles_of_the_tables() -> None:
    positions = torch.tensor([0, 1, 999_999, 2**20 - 1])
    for theta in (1e4, 1e7):
        angles = positions.float()[:, None] * inverse_frequencies(64, theta)
        cos, sin = rope_tables(positions, 64, theta)
        assert torch.equal(angles.cos(), cos)
        assert torch.equal(angles.sin(), sin)


def test_one_part_in_bfloat16_is_what_the_single_steps_give() -> None:
    torch.manual_seed(0)
    qkv = torch.randn(5, 4 * 48 + 2 * 48 + 2 * 32).bfloat16()
    positions, slots = torch.tensor([0, 7, 500, 1, 2**19]), torch.tensor([3, 9, 0, 5, 8])
    pools = [torch.zeros(10, 2, width).bfloat16() for width in (48, 32)]
    expected_pools = [pool.clone() for pool in pools]
    q, k, v = qkv.split((4 * 48, 2 * 48, 2 * 32), dim=-1)
    tables = rope_tables(positions, 16, 1e4)
    expected = apply_rope(q.view(5, 4, 48), *tables)
    write_kv(
        *expected_pools, apply_rope(k.view(5, 2, 48), *tables), v.view(5, 2, 32) * 0.707, slots
    )
    got = rope_and_write(
        qkv[:, None],
        positions,
        inverse_frequencies(16, 1e4),
        *pools,
        slots,
        num_heads=4,
        num_kv_heads=2,
        qk_head_dim=48,
        v_head_dim=32,
        value_scale=0.707,
    )
    assert torch.equal(got, expected)
    for pool, wanted in zip(pools, expected_pools, strict=True):
        assert torch.equal(pool, wanted)
