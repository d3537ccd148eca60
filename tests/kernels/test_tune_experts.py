"""Every candidate has a prediction, and the served ones come first."""

from mimo_engine.bench.tune_experts import candidates
from mimo_engine.kernels.linear.triton import MANY_TILINGS
from mimo_engine.kernels.moe.many_tokens import DOWN_TILINGS, SERVED, UP_TILINGS


def test_all_are_tried_the_likely_best_first() -> None:
    found = candidates()
    assert len(found) == len(UP_TILINGS) + len(DOWN_TILINGS) + len(MANY_TILINGS)
    assert all(one.is_served == (i < 3) for i, one in enumerate(found))
    assert [one.tiling for one in found[:2]] == [SERVED.up, SERVED.down]
    shares = [one.predicted_share for one in found[3:]]
    assert shares == sorted(shares)
