import dataclasses
from pathlib import Path

import pytest

from mimo_engine.cache.groups import (
    CacheLayout,
    KVGroup,
    kv_groups,
    max_window_pages,
    num_pages_for,
    plan_cache,
)
from mimo_engine.config.model import (
    AttentionKind,
    ModelConfig,
    load_model_config,
    parse_model_config,
)
from mimo_engine.errors import ConfigError

GIB = 1024**3
V2_5_PATH = Path(__file__).parents[2] / "data" / "config-mimo-v2.5.json"


@pytest.fixture(scope="module")
def v2_5(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    directory = tmp_path_factory.mktemp("v2_5")
    (directory / "config.json").write_bytes(V2_5_PATH.read_bytes())
    return load_model_config(directory)


def small_config(pattern: list[int], window: int = 128) -> ModelConfig:
    return parse_model_config(
        {
            "architectures": ["MiMoV2ForCausalLM"],
            "model_type": "mimo_v2",
            "vocab_size": 256,
            "hidden_size": 64,
            "num_hidden_layers": len(pattern),
            "hybrid_layer_pattern": pattern,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "swa_num_key_value_heads": 2,
            "head_dim": 24,
            "v_head_dim": 16,
            "intermediate_size": 64,
            "sliding_window": window,
            "rope_theta": 10000.0,
            "layernorm_epsilon": 1e-6,
            "max_position_embeddings": 4096,
        }
    )


def plan(config: ModelConfig, budget_bytes: int, **changes: int) -> CacheLayout:
    arguments = {
        "page_size": 16,
        "bytes_per_element": 2,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "max_model_len": 1_048_576,
    }
    return plan_cache(config, budget_bytes, **(arguments | changes))


def test_a_token_of_v2_5_takes_23040_bytes_in_the_full_group(v2_5):
    full, sliding = kv_groups(v2_5)
    assert full == KVGroup(
        layer_indices=(0, 5, 11, 17, 23, 29, 35, 41, 47),
        elements_per_token=9 * 4 * (192 + 128),
    )
    assert full.bytes_per_token(2) == 23_040
    assert len(sliding.layer_indices) == 39
    assert sliding.bytes_per_token(2) == 199_680


def test_v2_5_holds_1048576_tokens_in_22_5_gib_of_full_pages(v2_5):
    assert 1_048_576 * kv_groups(v2_5)[0].bytes_per_token(2) == 22.5 * GIB
    sliding_bytes = plan(v2_5, 100 * GIB).num_sliding_pages * 16 * 199_680
    layout = plan(v2_5, int(22.5 * GIB) + sliding_bytes)
    assert layout.num_full_pages * 16 == 1_048_576
    assert layout.num_full_pages * layout.full_page_bytes == 22.5 * GIB
    assert layout.total_bytes == int(22.5 * GIB) + sliding_bytes
    assert layout.longest_request(2_000_000) == 1_048_576


def test_ranks_may_keep_fewer_or_padded_kv_heads(v2_5):
    full, sliding = kv_groups(v2_5, {AttentionKind.FULL: 1, AttentionKind.SLIDING: 3})
    assert full.elements_per_token == 9 * 1 * 320
    assert sliding.elements_per_token == 39 * 3 * 320


def test_the_sliding_group_gets_its_working_set_and_two_windows_a_request_for_prefixes(v2_5):
    window_pages = 9
    layout = plan(v2_5, 100 * GIB)
    assert layout.num_sliding_pages == 64 * window_pages + 2048 // 16 + 1 + 2 * 64 * window_pages


def test_a_tight_budget_leaves_half_for_full_pages(v2_5):
    layout = plan(v2_5, 4 * GIB)
    assert layout.num_sliding_pages == 2 * GIB // layout.sliding_page_bytes
    assert layout.num_full_pages == (4 * GIB - layout.num_sliding_pages * 16 * 199_680) // (
        16 * 23_040
    )
    assert layout.total_bytes <= 4 * GIB


def test_no_more_full_pages_are_planned_than_can_be_used():
    layout = plan(small_config([0, 1, 1]), GIB, max_num_seqs=4, max_model_len=100)
    assert layout.num_full_pages == 2 * 4 * 7
    assert layout.num_sliding_pages == 4 * 7 + 2048 // 16 + 1 + 2 * 4 * 7
    assert layout.total_bytes < GIB // 100


def test_the_smallest_budget_serves_one_request_and_a_byte_less_is_refused():
    config = small_config([0, 1, 1])
    full, sliding = kv_groups(config)
    smallest = 16 * 2 * (16 * full.elements_per_token + 10 * sliding.elements_per_token)
    layout = plan(config, smallest)
    assert (layout.num_full_pages, layout.num_sliding_pages) == (16, 10)
    with pytest.raises(ConfigError, match="--kv-cache-gib"):
        plan(config, smallest - 1)
    with pytest.raises(ConfigError, match="256 tokens"):
        plan(config, 1)


def test_full_pages_keep_their_minimum_where_they_are_the_wider_ones():
    config = small_config([0] * 20 + [1])
    full, sliding = kv_groups(config)
    smallest = 16 * 2 * (16 * full.elements_per_token + 10 * sliding.elements_per_token)
    layout = plan(config, smallest)
    assert (layout.num_full_pages, layout.num_sliding_pages) == (16, 10)


def test_a_model_without_sliding_layers_has_full_pages_only():
    layout = plan(small_config([0, 0]), GIB)
    assert layout.window is None
    assert layout.num_sliding_pages == layout.sliding_page_bytes == 0
    assert layout.num_full_pages == GIB // layout.full_page_bytes


def test_a_model_without_full_layers_has_sliding_pages_only_and_no_limit_of_length():
    layout = plan(small_config([1, 1]), GIB)
    assert layout.num_full_pages == layout.full_page_bytes == 0
    assert layout.num_sliding_pages == 64 * 9 + 128 + 1 + 2 * 64 * 9
    assert layout.longest_request(10**9) == 10**9
    with pytest.raises(ConfigError, match="--kv-cache-gib"):
        plan(small_config([1, 1]), layout.sliding_page_bytes * 9)


def test_draft_layers_of_v2_5_join_the_sliding_group(v2_5):
    full, sliding = kv_groups(v2_5, num_draft_layers=3)
    plain_full, plain_sliding = kv_groups(v2_5)
    assert full == plain_full
    assert sliding.layer_indices == plain_sliding.layer_indices
    assert sliding.bytes_per_token(2) == 199_680 + 3 * 8 * (192 + 128) * 2
    heads = {AttentionKind.FULL: 1, AttentionKind.SLIDING: 3}
    assert kv_groups(v2_5, heads, 3)[1].elements_per_token == (39 + 3) * 3 * 320


@pytest.mark.parametrize("num_draft_layers", [0, 1, 3, 16])
def test_a_cache_with_draft_layers_is_divided_without_a_rest(v2_5, num_draft_layers):
    full, sliding = kv_groups(v2_5, num_draft_layers=num_draft_layers)
    for gib in (1, 4, 30, 100):
        layout = plan(v2_5, gib * GIB, num_draft_layers=num_draft_layers)
        assert layout.full_page_bytes == 16 * full.bytes_per_token(2)
        assert layout.sliding_page_bytes == 16 * sliding.bytes_per_token(2)
        left = gib * GIB - layout.total_bytes
        assert 0 <= left < layout.full_page_bytes
    # A window and the drafts behind it.
    window_pages = max_window_pages(128 + num_draft_layers, 16)
    assert layout.num_sliding_pages == 3 * 64 * window_pages + 2048 // 16 + 1


@pytest.mark.parametrize(("num_draft_layers", "num_sliding"), [(1, 10), (2, 11), (3, 11), (17, 11)])
def test_the_smallest_budget_serves_one_request_with_all_its_drafts(num_draft_layers, num_sliding):
    config = small_config([0, 1, 1])
    full, sliding = kv_groups(config, num_draft_layers=num_draft_layers)
    smallest = 16 * 2 * (16 * full.elements_per_token + num_sliding * sliding.elements_per_token)
    layout = plan(config, smallest, num_draft_layers=num_draft_layers)
    assert (layout.num_full_pages, layout.num_sliding_pages) == (16, num_sliding)
    assert layout.total_bytes == smallest
    with pytest.raises(ConfigError, match="--kv-cache-gib"):
        plan(config, smallest - 1, num_draft_layers=num_draft_layers)


def test_a_layout_is_frozen():
    layout = plan(small_config([0, 1]), GIB)
    with pytest.raises(dataclasses.FrozenInstanceError):
        layout.page_size = 1


@pytest.mark.parametrize("page_size", [1, 2, 16])
def test_max_window_pages_is_the_most_that_any_start_touches(page_size):
    for window in range(1, 40):
        touched = max(
            (start + window - 1) // page_size - start // page_size + 1 for start in range(64)
        )
        assert max_window_pages(window, page_size) == touched


def test_num_pages_for_counts_a_begun_page():
    assert [num_pages_for(n, 4) for n in (0, 1, 4, 5)] == [0, 1, 1, 2]
