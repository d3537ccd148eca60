"""Guards that could not work are refused by the name of their flag."""

import pytest

from mimo_engine.config.guards import GuardConfig
from mimo_engine.errors import ConfigError


def test_a_limit_of_calls_leaves_at_least_one():
    assert GuardConfig(max_tool_calls=1).max_tool_calls == 1
    with pytest.raises(ConfigError, match="--max-tool-calls"):
        GuardConfig(max_tool_calls=0)


def test_no_image_may_be_kept_but_no_fewer():
    assert GuardConfig(keep_images=0).keep_images == 0
    with pytest.raises(ConfigError, match="--keep-images"):
        GuardConfig(keep_images=-1)
