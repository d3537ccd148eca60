"""Loading the towers that export wrote, and serving text from the same files without them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimo_engine.checkpoint.export import ExportFormat
from mimo_engine.checkpoint.index import INDEX_NAME, open_checkpoint
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.names import tower_of
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.checkpoint.tower_params import Tower
from mimo_engine.checkpoint.towers import load_towers
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.distributed.plan import ParallelPlan
from mimo_engine.errors import ConfigError

FP8 = ExportFormat(linear="fp8", experts="fp8")
EXACT = ExportFormat(dtype=torch.float32)


def is_codebook(name: str) -> bool:
    return name.endswith("_codebook.embed")


@pytest.mark.parametrize("max_shard_bytes", [2**17, 2**30])
def test_float32_towers_come_back_exactly(
    omni_checkpoint: Callable[..., Any], max_shard_bytes: int
) -> None:
    checkpoint = omni_checkpoint(EXACT, max_shard_bytes=max_shard_bytes)
    loaded = load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.float32)
    for tower in Tower:
        expected, found = checkpoint.towers[tower], loaded[tower]
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            assert found[name].dtype is torch.float32
            assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("stored", [FP8, EXACT], ids=["bf16 files", "fp32 files"])
def test_all_but_the_codebooks_is_held_in_the_towers_dtype(
    omni_checkpoint: Callable[..., Any], stored: ExportFormat, dtype: torch.dtype
) -> None:
    checkpoint = omni_checkpoint(stored)
    loaded = load_towers(checkpoint.model_dir, checkpoint.media, dtype=dtype)
    for tower in Tower:
        for name, tensor in checkpoint.towers[tower].items():
            expected = tensor if is_codebook(name) else tensor.to(stored.dtype).to(dtype)
            found = loaded[tower][name]
            assert found.dtype is expected.dtype, name
            assert torch.equal(found, expected), name


def test_float16_is_refused(omni_checkpoint: Callable[..., Any]) -> None:
    checkpoint = omni_checkpoint(FP8)
    with pytest.raises(ConfigError, match=r"bfloat16 or float32, not in torch\.float16"):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.float16)


def test_loaded_towers_do_not_hang_on_the_files(omni_checkpoint: Callable[..., Any]) -> None:
    checkpoint = omni_checkpoint(EXACT)
    loaded = load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.float32)
    for tower in Tower:
        for tensor in loaded[tower].values():
            tensor.zero_()
    again = load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.float32)
    assert all(
        torch.equal(again[tower][name], tensor)
        for tower in Tower
        for name, tensor in checkpoint.towers[tower].items()
    )


@pytest.mark.parametrize("tp_size", [1, 3])
def test_the_text_model_is_the_same_with_towers_and_without(
    omni_checkpoint: Callable[..., Any], tp_size: int
) -> None:
    checkpoint = omni_checkpoint(FP8)
    for tp_rank in range(tp_size):
        plan = ParallelPlan(tp_size=tp_size, tp_rank=tp_rank)
        text, omni = (
            load_checkpoint(
                checkpoint.model_dir,
                checkpoint.config,
                plan,
                media=media,
                dtype=torch.bfloat16,
                keep_quantised=False,
            )
            for media in (None, checkpoint.media)
        )
        assert list(text) == list(omni)
        assert not any(tower_of(name) for name in text)
        assert all(torch.equal(text[name], omni[name]) for name in text)


def test_text_alone_is_served_without_reading_the_towers(
    omni_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = omni_checkpoint(FP8, max_shard_bytes=2**30)
    shutil.rmtree(checkpoint.model_dir / AUDIO_TOKENIZER_DIR)
    (checkpoint.model_dir / "preprocessor_config.json").unlink()
    path = checkpoint.model_dir / "model_pp0_ep0_shard0.safetensors"
    tensors = load_file(path)
    for name in tensors:
        if tower_of(name):
            # Of no shape and type that a tower has, and no numbers: nobody looks.
            tensors[name] = torch.full((3, 1), float("nan"), dtype=torch.float64)
    save_file(tensors, path)
    loaded = load_checkpoint(
        checkpoint.model_dir, checkpoint.config, dtype=torch.float32, keep_quantised=False
    )
    assert all(bool(tensor.isfinite().all()) for tensor in loaded.values())
    report = inspect_checkpoint(checkpoint.model_dir, checkpoint.config, deep=True)
    assert report.problems == ()
    assert sum(report.ignored.values()) == sum(1 for name in tensors if tower_of(name))


def test_the_report_names_what_each_tensor_of_a_tower_fills(
    omni_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = omni_checkpoint(FP8, has_training_state=True)
    report = inspect_checkpoint(
        checkpoint.model_dir, checkpoint.config, media=checkpoint.media, deep=True
    )
    assert report.problems == ()
    assert report.ignored == {
        "moving averages of the codebooks; training only": 3 * 20,
        "speech generation; only input is served": 1,
    }
    assert report.formats["vision tower"] == {"bfloat16": 80}
    assert report.formats["audio encoder"] == {"bfloat16": 47}
    assert report.formats["audio tokenizer"] == {"bfloat16": 69, "float32": 20}
    main = open_checkpoint(checkpoint.model_dir)
    tokenizer = open_checkpoint(checkpoint.model_dir / AUDIO_TOKENIZER_DIR)
    assert report.num_tensors == len(main.tensors) + len(tokenizer.tensors)
    assert report.num_bytes == main.num_bytes + tokenizer.num_bytes
    by_name = {line.name: line for line in report.tensors}
    assert all(line.use for line in report.tensors)
    line = by_name["visual.blocks.1.attn.sinks"]
    assert line.use == "blocks.1.attn.sinks of the vision tower"
    line = by_name["encoder.conv1.weight"]
    assert line.use == "encoder.conv1.weight of the audio tokenizer"
    assert line.file == "audio_tokenizer/model.safetensors"


def test_training_state_beside_the_codebooks_changes_nothing(
    omni_checkpoint: Callable[..., Any],
) -> None:
    plain, full = (
        omni_checkpoint(EXACT, name=f"m{has_state:d}", has_training_state=has_state)
        for has_state in (False, True)
    )
    first, second = (
        load_towers(c.model_dir, c.media, dtype=torch.float32)[Tower.AUDIO_TOKENIZER]
        for c in (plain, full)
    )
    assert list(first) == list(second)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_codebooks_that_are_rounded_at_load_may_be_stored_rounded(
    omni_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = omni_checkpoint(EXACT, facts=MediaFacts(audio_bf16_tables="on"))
    path = checkpoint.model_dir / AUDIO_TOKENIZER_DIR / "model.safetensors"
    tensors = load_file(path)
    save_file({n: t.bfloat16() if is_codebook(n) else t for n, t in tensors.items()}, path)
    loaded = load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)
    for name, tensor in checkpoint.towers[Tower.AUDIO_TOKENIZER].items():
        if is_codebook(name):
            found = loaded[Tower.AUDIO_TOKENIZER][name]
            assert found.dtype is torch.float32
            assert torch.equal(found, tensor.bfloat16().float())


def test_an_audio_tokenizer_in_several_files_loads(omni_checkpoint: Callable[..., Any]) -> None:
    checkpoint = omni_checkpoint(EXACT)
    folder = checkpoint.model_dir / AUDIO_TOKENIZER_DIR
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map: dict[str, str] = {}
    for file, rest in (("a.safetensors", 0), ("b.safetensors", 1)):
        part = {name: tensors[name] for i, name in enumerate(tensors) if i % 2 == rest}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))
    loaded = load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.float32)
    for name, tensor in checkpoint.towers[Tower.AUDIO_TOKENIZER].items():
        assert torch.equal(loaded[Tower.AUDIO_TOKENIZER][name], tensor)


def test_exported_towers_lie_where_the_releases_have_them(
    omni_checkpoint: Callable[..., Any],
) -> None:
    checkpoint = omni_checkpoint(FP8, max_shard_bytes=2**30)
    main = open_checkpoint(checkpoint.model_dir)
    towers = {name: info for name, info in main.tensors.items() if tower_of(name)}
    assert {info.file for info in towers.values()} == {"model_pp0_ep0_shard0.safetensors"}
    assert {info.dtype for info in towers.values()} == {torch.bfloat16}
    assert sorted(p.name for p in Path(checkpoint.model_dir, AUDIO_TOKENIZER_DIR).iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
