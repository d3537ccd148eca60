"""`mimo-engine random-checkpoint`, `check` and `generate` on what it writes."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch

from mimo_engine.checkpoint.index import INDEX_NAME, open_checkpoint
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.cli.main import main
from mimo_engine.cli.random_checkpoint import SMALL_MODEL
from mimo_engine.cli.tower_files import SMALL_TOWERS
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.model import load_model_config, parse_model_config

TINY = ["--num-layers", "4", "--num-mtp-layers", "1"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of `random-checkpoint` without flags, which `make serve` serves."""
    out = tmp_path_factory.mktemp("random") / "small"
    assert main(["random-checkpoint", str(out)]) == 0
    return out


def hashes(directory: Path) -> dict[str, str]:
    return {
        str(path.relative_to(directory)): sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


def run_generate(model_dir: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    capsys.readouterr()
    assert main(["generate", str(model_dir), "--device", "cpu", *flags]) == 0
    return capsys.readouterr().out


def test_the_default_checkpoint_is_whole(small: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(small), "--deep"]) == 0
    report = capsys.readouterr().out
    assert "qkv: chunked; draft layers: 3" in report
    assert "experts: 168 fp8" in report
    assert report.endswith("whole: every tensor has its place, every parameter its tensor\n")


def test_the_default_model_has_the_shape_of_the_family() -> None:
    config = parse_model_config(SMALL_MODEL)
    full, sliding = (
        next(spec for spec in config.layers if spec.is_sliding == slides)
        for slides in (False, True)
    )
    assert (full.qk_head_dim, full.v_head_dim, full.rotary_dim) == (192, 128, 64)
    assert (full.num_kv_heads, sliding.num_kv_heads, config.qkv_chunks) == (4, 8, 4)
    assert (full.has_sink, sliding.has_sink) == (False, True)
    # In a chunk of a full layer, V begins in the middle of a scale block that K ends in.
    rows_before_v = full.num_heads // 4 * 192 + 192
    assert rows_before_v % 128 == 64


def test_the_tokenizer_leaves_dead_rows_and_the_stop_ids_are_its_own(small: Path) -> None:
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    by_name = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    config = load_model_config(small)
    assert max(by_name.values()) < config.vocab_size - 1
    stops = {by_name[name] for name in ("<|endoftext|>", "<|im_end|>", "<|mimo_audio_eod|>")}
    assert set(config.eos_token_ids) == stops


@pytest.mark.parametrize("layout", ["fused", "split"])
@pytest.mark.parametrize("stored", ["bf16", "fp8", "mxfp4-experts"])
def test_every_layout_and_format_is_whole(layout: str, stored: str, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    flags = [*TINY, "--layout", layout, "--format", stored]
    assert main(["random-checkpoint", str(out), *flags]) == 0
    report = inspect_checkpoint(out, load_model_config(out), deep=True)
    assert report.problems == ()
    assert report.projection == {"fused": "chunked", "split": "split"}[layout]
    assert set(report.formats["experts"]) == {
        {"bf16": "bfloat16", "fp8": "fp8", "mxfp4-experts": "mxfp4"}[stored]
    }


def test_the_same_seed_gives_the_same_files_and_another_seed_other_weights(tmp_path: Path) -> None:
    for name, seed in (("a", "7"), ("b", "7"), ("c", "8")):
        assert main(["random-checkpoint", str(tmp_path / name), *TINY, "--seed", seed]) == 0
    a, b, c = (hashes(tmp_path / name) for name in "abc")
    assert a == b
    different = {name for name in a if a[name] != c[name]}
    assert different == {name for name in a if name.endswith(".safetensors")}


def test_like_follows_a_config_at_other_widths(tmp_path: Path) -> None:
    raw: dict[str, Any] = {**SMALL_MODEL, "vocab_size": 152576}
    for key in SMALL_TOWERS:
        del raw[key]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    out = tmp_path / "out"
    flags = ["--like", str(tmp_path), *TINY, "--hidden-size", "128", "--vocab-size", "640"]
    assert main(["random-checkpoint", str(out), *flags, "--num-experts", "4"]) == 0
    config = load_model_config(out)
    assert (config.hidden_size, config.vocab_size, config.num_layers) == (128, 640, 4)
    assert config.router is not None
    assert config.router.num_experts == 4
    assert not config.has_towers
    assert not (out / AUDIO_TOKENIZER_DIR).exists()
    assert inspect_checkpoint(out, config).problems == ()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num-layers", "9"], "there are only 8"),
        (["--hidden-size", "0"], "hidden_size must be at least 1"),
        (["--vocab-size", "100"], "too small"),
        (["--like", "nowhere"], "neither a directory nor"),
        (["--num-experts", "1"], "num_experts_per_tok"),
        (["--num-mtp-layers", "-1"], "--num-mtp-layers must be 0 or more"),
        (["--hidden-size", "100", "--format", "mxfp4-experts"], "groups of 32, not 100"),
    ],
)
def test_what_cannot_be_made_is_refused_and_leaves_nothing(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["random-checkpoint", str(tmp_path / "out"), *flags]) == 1
    assert re.fullmatch(rf"error: .*{message}.*\n", capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_files_is_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "precious").write_text("mine")
    assert main(["random-checkpoint", str(tmp_path)]) == 1
    assert "already exists" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["precious"]


def test_check_names_what_is_missing_and_exits_with_1(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    shutil.copytree(small, broken)
    config = json.loads((broken / "config.json").read_text())
    config["num_hidden_layers"] = 7
    for key in ("hybrid_layer_pattern", "moe_layer_freq"):
        config[key] = config[key][:7]
    (broken / "config.json").write_text(json.dumps(config))
    assert main(["check", str(broken)]) == 1
    errors = capsys.readouterr().err
    assert "error: tensor model.layers.7." in errors
    assert "num_hidden_layers" in errors


def test_check_lists_every_tensor_on_demand(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(small), "--tensors"]) == 0
    listed = capsys.readouterr().out
    index = json.loads((small / INDEX_NAME).read_text())
    assert all(f"{name}  " in listed for name in index["weight_map"])
    assert "PROBLEM" not in listed


def test_the_fused_scale_grid_restarts_at_every_chunk(small: Path) -> None:
    index = open_checkpoint(small)
    scales = index.read("model.layers.0.self_attn.qkv_proj.weight_scale_inv")
    # 4 chunks of 704 rows = 5.5 blocks, so 6 scale rows each.
    assert scales.shape == (24, 2)
    assert scales.dtype is torch.float32
    assert bool((scales > 0).all())


def test_generate_prints_text_that_a_seed_repeats(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", "Once upon a time", "--max-tokens", "24"]
    first = run_generate(small, capsys, *flags, "--seed", "5")
    assert len(first.strip()) > 0
    assert run_generate(small, capsys, *flags, "--seed", "5") == first
    assert run_generate(small, capsys, *flags, "--seed", "6") != first


def test_greedy_text_of_the_random_model_is_varied(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    greedy = ["--temperature", "0", "--max-tokens", "24"]
    hello = run_generate(small, capsys, "--prompt", "Hello", *greedy)
    assert len(set(hello)) >= 8
    assert run_generate(small, capsys, "--prompt", "The river", *greedy) != hello


def test_generate_renders_the_chat_template_when_asked(
    small: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--prompt", "Hello", "--temperature", "0", "--max-tokens", "8"]
    assert run_generate(small, capsys, *flags, "--chat") != run_generate(small, capsys, *flags)
