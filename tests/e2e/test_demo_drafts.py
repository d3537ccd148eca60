"""The demo model's draft layers guess well enough to test speculative decoding with them."""

import pytest

from mimo_engine.demo.acceptance import measure_acceptance
from mimo_engine.demo.text_tasks import TEXT_TASKS
from mimo_engine.utils.hub import resolve_model


@pytest.mark.parametrize("name", ["sums", "json"])
def test_a_step_yields_more_than_two_and_a_half_tokens(name):
    tasks = [task for task in TEXT_TASKS if task.name == name]
    (found,) = measure_acceptance(resolve_model("demo"), tasks, items_per_task=10)
    assert found.num_rows > 50
    assert found.length > 2.5
    # Each layer is right by itself: three are used, not one.
    assert min(found.shares) > 0.75
