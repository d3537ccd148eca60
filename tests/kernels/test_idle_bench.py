"""Waiting of the GPU, from times of kernels."""

import pytest

from mimo_engine.bench import idle

MS = 10**6


def kernels(*rows):
    return [idle.Kernel(int(start * MS), int(end * MS), name) for start, end, name in rows]


STEP = [(0, 1, "_begin"), (1, 3, "_few_rows"), (3.5, 4, "_begin_drafts"), (4, 6, "_few_rows")]


def steps(count):
    return kernels(*((i * 10 + a, i * 10 + b, name) for i in range(count) for a, b, name in STEP))


def test_only_whole_steps_count():
    torn = kernels((-5, -4, "_few_rows"))
    whole = idle.whole_steps(torn + steps(4))
    assert [len(step) for step in whole] == [4, 4, 4]
    assert whole[0][0].start == 0
    with pytest.raises(ValueError, match="no captured steps"):
        idle.whole_steps(steps(2))


def test_a_step_is_cut_where_the_draft_layers_begin():
    parts = idle.parts_of(idle.whole_steps(steps(4)))
    assert (parts.verification_ms, parts.drafts_ms) == (3.5, 6.5)
    without = [kernel for kernel in steps(4) if kernel.name != "_begin_drafts"]
    parts = idle.parts_of(idle.whole_steps(without))
    assert (parts.verification_ms, parts.drafts_ms) == (10, 0)


def test_kernels_side_by_side_are_busy_once():
    found = idle.usage(kernels((0, 4, "a"), (2, 6, "b"), (8, 10, "a")), count=2, clock_ms=5)
    assert (found["span_ms"], found["busy_ms"], found["kernels_ms"]) == (5, 4, 5)
    assert found["idle_traced"] == found["idle_by_clock"] == 0.2
    assert found["kernels"] == {"a": (1, 3), "b": (0.5, 2)}
