import pytest

from mimo_engine.config.sampling import SamplingParams
from mimo_engine.errors import RequestError


@pytest.mark.parametrize("top_k", [-2, 2**31, 2**32 + 1])
def test_a_top_k_that_captured_steps_cannot_hold_is_refused(top_k):
    with pytest.raises(RequestError, match=f"0 to {2**31 - 1}, not {top_k}"):
        SamplingParams(top_k=top_k)
    assert SamplingParams(top_k=2**31 - 1).top_k == 2**31 - 1
