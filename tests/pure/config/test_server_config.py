"""What could not work is refused by the name of its flag."""

import pytest

from mimo_engine.config.server import GuardConfig, ServerConfig
from mimo_engine.errors import ConfigError


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_is_one_that_exists(port):
    with pytest.raises(ConfigError, match="--port"):
        ServerConfig(port=port)


def test_a_limit_of_calls_leaves_at_least_one():
    assert GuardConfig(max_tool_calls=1).max_tool_calls == 1
    with pytest.raises(ConfigError, match="--max-tool-calls"):
        GuardConfig(max_tool_calls=0)


def test_no_image_may_be_kept_but_no_fewer():
    assert GuardConfig(keep_images=0).keep_images == 0
    with pytest.raises(ConfigError, match="--keep-images"):
        GuardConfig(keep_images=-1)
