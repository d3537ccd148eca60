"""`mimo-engine plan` against the family's published sizes."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mimo_engine.cli.capacity import kv_cost, layout_for, weight_groups
from mimo_engine.cli.main import main, parse
from mimo_engine.config.engine import CacheConfig, SchedulerConfig
from mimo_engine.config.model import ModelConfig, parse_model_config
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import ConfigError

DATA = Path(__file__).parents[2] / "data"
GIB = 2**30
FULL_LAYERS = (0, 5, 11, 17, 23, 29, 35, 41, 47)


def v25_json(**changes: Any) -> dict[str, Any]:
    """config.json of V2.5 as text.md 1.1 to 1.3 gives it, without the towers."""
    quantization = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }
    return {
        "architectures": ["MiMoV2ForCausalLM"],
        "model_type": "mimo_v2",
        "vocab_size": 152576,
        "hidden_size": 4096,
        "num_hidden_layers": 48,
        "hybrid_layer_pattern": [int(i not in FULL_LAYERS) for i in range(48)],
        "moe_layer_freq": [int(i > 0) for i in range(48)],
        "num_attention_heads": 64,
        "num_key_value_heads": 4,
        "swa_num_attention_heads": 64,
        "swa_num_key_value_heads": 8,
        "head_dim": 192,
        "v_head_dim": 128,
        "swa_head_dim": 192,
        "swa_v_head_dim": 128,
        "intermediate_size": 16384,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "attention_value_scale": 0.707,
        "attention_projection_layout": "fused_qkv",
        "add_swa_attention_sink_bias": True,
        "partial_rotary_factor": 0.334,
        "rope_theta": 1e7,
        "swa_rope_theta": 1e4,
        "sliding_window": 128,
        "max_position_embeddings": 1048576,
        "quantization_config": quantization,
        **changes,
    }


@pytest.fixture
def v25() -> ModelConfig:
    return parse_model_config(v25_json())


@pytest.fixture
def v25_mxfp4() -> ModelConfig:
    raw = v25_json()
    return parse_model_config(
        {**raw, "quantization_config": {**raw["quantization_config"], "store_dtype": "mxfp4"}}
    )


@pytest.fixture
def config_path(tmp_path: Path) -> str:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(v25_json()))
    return str(path)


def weights_in_gb(config: ModelConfig, tp_size: int = 1, **options: Any) -> dict[str, float]:
    """GB a rank by group."""
    arguments = {"dtype_bytes": 2, "decoded": False, "num_mtp_layers": 3, **options}
    groups = weight_groups(config, ParallelPlan(tp_size=tp_size), **arguments)
    return {group.name: group.num_bytes / 1e9 for group in groups}


def test_a_token_costs_23040_bytes_in_the_full_group_and_a_million_22_and_a_half_gib(
    v25: ModelConfig,
) -> None:
    cost = kv_cost(v25, ParallelPlan(), dtype_bytes=2, page_size=16, num_draft_layers=0)
    assert cost.full_bytes_per_token == 23_040
    assert 1_048_576 * cost.full_bytes_per_token == 22.5 * GIB
    # 128 consecutive tokens touch at most 9 pages of 16; a token costs 199,680 bytes.
    assert cost.sliding_bytes_per_sequence == 9 * 16 * 199_680
    # Three draft layers beside the 39 sliding ones, and three drafts behind the window.
    drafting = kv_cost(v25, ParallelPlan(), dtype_bytes=2, page_size=16, num_draft_layers=3)
    assert drafting.full_bytes_per_token == cost.full_bytes_per_token
    assert drafting.sliding_bytes_per_sequence == 10 * 16 * 199_680 // 39 * 42


def test_the_full_pages_of_a_million_tokens_take_22_and_a_half_gib(v25: ModelConfig) -> None:
    layout = layout_for(
        v25,
        ParallelPlan(),
        budget_bytes=200 * GIB,
        dtype_bytes=2,
        cache=CacheConfig(),
        scheduler=SchedulerConfig(max_num_seqs=1),
        num_draft_layers=0,
    )
    assert 1_048_576 // layout.page_size * layout.full_page_bytes == 22.5 * GIB
    assert layout.longest_request(1_048_576) == 1_048_576


def test_the_weights_of_v25_have_the_published_size_in_fp8(v25: ModelConfig) -> None:
    gb = weights_in_gb(v25)
    assert sum(gb.values()) == pytest.approx(313.1, abs=0.1)
    assert gb["experts"] == pytest.approx(302.87, abs=0.01)
    assert gb["o_proj"] == pytest.approx(3.22, abs=0.01)
    assert gb["embedding"] == pytest.approx(1.25, abs=0.01)
    assert gb["draft layers"] == pytest.approx(1.19, abs=0.01)


def test_the_weights_of_v25_have_the_published_size_in_mxfp4(v25_mxfp4: ModelConfig) -> None:
    gb = weights_in_gb(v25_mxfp4)
    assert sum(gb.values()) == pytest.approx(171.0, abs=0.1)
    assert gb["experts"] == pytest.approx(160.86, abs=0.01)


def test_the_family_has_309_8_billion_parameters(v25: ModelConfig) -> None:
    groups = weight_groups(v25, ParallelPlan(), dtype_bytes=2, decoded=False, num_mtp_layers=3)
    assert sum(group.num_parameters for group in groups) == pytest.approx(309.77e9, rel=1e-4)


def test_a_rank_holds_its_share_and_whole_copies_of_what_is_replicated(v25: ModelConfig) -> None:
    one, four = weights_in_gb(v25), weights_in_gb(v25, tp_size=4)
    assert four["experts"] == pytest.approx(one["experts"] / 4, rel=1e-3)
    assert four["router"] == one["router"]


def test_on_a_cpu_quantised_weights_count_as_decoded(v25_mxfp4: ModelConfig) -> None:
    gb = weights_in_gb(v25_mxfp4, decoded=True)
    assert gb["experts"] == pytest.approx(2 * 302.795, abs=0.01)


def test_the_report_says_how_many_tokens_fit(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config_path, "--gpus", "4", "--gpu", "h200"]) == 0
    report = capsys.readouterr().out
    assert re.search(r"full layers, a token +5,760 B", report)
    assert re.search(r"longest request +1,048,576 of 1,048,576", report)
    tokens = re.search(r"tokens that fit +([\d,]+)", report)
    assert tokens is not None
    assert int(tokens.group(1).replace(",", "")) > 8_000_000


def test_a_model_too_large_for_the_gpus_exits_with_1(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config_path, "--gpus", "2", "--gpu", "h200"]) == 1
    assert "Does not fit" in capsys.readouterr().out


def planned(report: str, name: str) -> list[float]:
    """Billions of parameters, GB a rank and GB in all, in the row of this name."""
    row = re.search(rf"^{name}  .*? ([\d.]+) B +([\d.]+) +([\d.]+)$", report, flags=re.MULTILINE)
    assert row is not None, report
    return [float(number) for number in row.groups()]


@pytest.mark.parametrize("gpus", [1, 4])
def test_the_towers_of_v25_are_on_rank_0_alone(
    gpus: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", str(DATA / "config-mimo-v2.5.json"), "--gpus", str(gpus)]) == 0
    report = capsys.readouterr().out
    # vision.md 1.1; audio.md 7: 616 MB and 18 MB of codebooks; 261 million parameters.
    assert planned(report, "vision tower, rank 0") == [0.729, 1.46, 1.46]
    assert planned(report, "audio tokenizer, rank 0") == [0.313, 0.63, 0.63]
    assert planned(report, "audio encoder, rank 0") == [0.261, 0.52, 0.52]
    text, rank_0 = planned(report, "sum"), planned(report, "sum, rank 0")
    assert rank_0[1] - text[1] == pytest.approx(2.614, abs=0.011)
    assert rank_0[2] - text[2] == pytest.approx(2.614, abs=0.011)


def test_text_only_gives_the_memory_of_the_towers_to_the_cache(
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["plan", str(DATA / "config-mimo-v2.5.json"), "--gpus", "4", "--gpu", "h200"]
    budgets = []
    for flags in ([], ["--text-only"]):
        assert main([*arguments, *flags]) == 0
        report = capsys.readouterr().out
        assert ("tower" in report) == (not flags)
        budget = re.search(r"for the KV cache +([\d.]+) GiB", report)
        assert budget is not None
        budgets.append(float(budget.group(1)))
    assert (budgets[1] - budgets[0]) * GIB == pytest.approx(2.614e9, rel=0.005)


def test_towers_take_their_size_in_float32_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(DATA / "config-mimo-v2.5.json")
    assert main(["plan", path, "--device", "cpu", "--num-mtp-layers", "0"]) == 0
    report = capsys.readouterr().out
    assert planned(report, "vision tower, rank 0") == [0.729, 2.91, 2.91]
    assert planned(report, "audio tokenizer, rank 0") == [0.313, 1.25, 1.25]


def test_without_a_gpu_the_costs_are_still_told(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", config_path]) == 0
    report = capsys.readouterr().out
    assert re.search(r"full layers, 1,048,576 tokens +22.50 GiB", report)
    assert "tokens that fit" not in report.split("Pass --gpu")[0]


def test_more_cache_than_is_free_is_refused(
    config_path: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["plan", config_path, "--gpus", "4", "--gpu", "h200", "--kv-cache-gib", "99"]
    assert main(arguments) == 1
    assert "--kv-cache-gib 99.0 does not fit" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags",
    [
        {"gpu": "h100", "gpu_gib": 80.0},
        {"gpus": 0},
        {"gpus": 4, "tensor_parallel_size": 3},
        {"gpus": 2, "tensor_parallel_size": 4},
        {"tensor_parallel_size": 0},
        {"gpu_gib": 0.0},
    ],
)
def test_flags_that_contradict_each_other_are_refused(flags: dict[str, Any]) -> None:
    command = type(parse("plan", ["m"]))
    with pytest.raises(ConfigError, match="--gpu"):
        command(model="m", **flags)
