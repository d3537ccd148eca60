"""Choices that contradict themselves are refused when the tree is built."""

import math

import pytest

from mimo_engine.config.engine import (
    CacheConfig,
    EngineConfig,
    ParallelConfig,
    SchedulerConfig,
)
from mimo_engine.errors import ConfigError


@pytest.mark.parametrize("size", [0.0, -1.0, math.nan, math.inf])
def test_a_cache_size_is_a_positive_number(size):
    with pytest.raises(ConfigError, match="--kv-cache-gib"):
        CacheConfig(kv_cache_gib=size)


def test_one_gpu_cannot_hold_two_ranks():
    with pytest.raises(ConfigError, match="CUDA_VISIBLE_DEVICES"):
        EngineConfig(model="m", device="cuda:1", parallel=ParallelConfig(tensor_parallel_size=2))


def test_the_context_is_the_checkpoints_or_a_shorter_one():
    assert SchedulerConfig().context_len(4096) == 4096
    assert SchedulerConfig(max_model_len=100).context_len(4096) == 100
    with pytest.raises(ConfigError, match="--max-model-len 4097"):
        SchedulerConfig(max_model_len=4097).context_len(4096)
