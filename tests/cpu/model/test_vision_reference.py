"""The vision tower against the slow implementation of vision_reference.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vision_models import (
    COLUMN,
    FULL,
    REAL_VISION_CONFIG,
    ROW,
    random_patches,
    random_weights,
    tiny_config,
    tower_of,
)
from vision_reference import SlowTower

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.vision import parse_vision_config


def assert_equals_slow(config, grids, *, seed=0):
    """Row by row: the distance of each token from the slow one, over the length of that one."""
    weights = random_weights(config, seed)
    patches = random_patches(config, grids, seed)
    with torch.no_grad():
        tokens = tower_of(config, weights)(patches, grids).double()
    expected = torch.from_numpy(SlowTower(config, weights).run(patches, grids).tokens)
    assert tokens.shape == expected.shape
    errors = (tokens - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() < 1e-5


@pytest.mark.parametrize("merger_norm", ["layernorm", "rmsnorm"])
@pytest.mark.parametrize("sinks", ["extra_column", "key0", None])
def test_every_variant_equals_the_slow_tower(sinks, merger_norm):
    config = tiny_config(
        sinks=sinks or "key0", has_sinks=sinks is not None, merger_norm=merger_norm
    )
    assert_equals_slow(config, [(1, 4, 6), (3, 4, 2)])


@given(
    kinds=st.lists(st.sampled_from([FULL, ROW, COLUMN]), min_size=1, max_size=4),
    grids=st.lists(
        st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 3)), min_size=1, max_size=2
    ),
    window=st.integers(0, 20),
    merge_size=st.sampled_from([1, 2, 3]),
    ratio=st.sampled_from([1, 2]),
    seed=st.integers(0, 1000),
)
def test_any_pattern_of_layers_over_any_grids_equals_the_slow_tower(
    kinds, grids, window, merge_size, ratio, seed
):
    config = tiny_config(
        kinds=kinds,
        window=window,
        spatial_merge_size=merge_size,
        num_heads=2 * ratio,
        head_dim=12,
    )
    grids = [(t, rows * merge_size, columns * merge_size) for t, rows, columns in grids]
    assert_equals_slow(config, grids, seed=seed)


def test_frames_of_many_blocks_equal_the_slow_tower():
    """Frames longer than the blocks of windowed attention, of lengths that do not divide by them;
    heads of 16 take the fused kernels of full attention."""
    config = tiny_config(kinds=(FULL, ROW, COLUMN), window=7, head_dim=16)
    assert_equals_slow(config, [(1, 10, 14), (2, 6, 6)])


@pytest.mark.prove
def test_the_real_geometry_equals_the_slow_tower():
    """All 28 layers at full width; 168 patches, more than a window has."""
    config = parse_vision_config(REAL_VISION_CONFIG, MediaFacts())
    assert_equals_slow(config, [(1, 12, 14)])
