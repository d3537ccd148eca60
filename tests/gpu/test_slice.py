"""The first layers of MiMo-V2.5 at full width: logits of all ways to compute them."""

import pytest

pytest.importorskip("triton")

from mimo_engine.bench.agreement import beyond, compare_slices


@pytest.mark.parametrize("weights", ["random-fp8", "random-mxfp4"])
def test_logits_are_as_near_to_float32_as_rounding_lets_them_be(weights):
    errors = compare_slices(weights)
    assert beyond(errors) == []
    # The bounds hang on it. Logits that had nothing to do with each other would be at 1.4.
    assert errors["definitions in float32"]["definitions in bfloat16"] < 0.5
