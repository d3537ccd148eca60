"""Every way to damage a tower is refused, by a message with the tensor or file and the remedy."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mimo_engine.checkpoint.export import ExportFormat
from mimo_engine.checkpoint.index import INDEX_NAME
from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.names import tower_of
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.checkpoint.towers import load_towers
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig, load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.errors import CheckpointError, ConfigError

MAIN = "model_pp0_ep0_shard0.safetensors"
QKV = "visual.blocks.2.attn.qkv.weight"
SINKS = "visual.blocks.1.attn.sinks"
TABLE = "speech_embeddings.19.weight"
O_PROJ = "audio_encoder.input_local_transformer.layers.1.self_attn.o_proj.weight"
CONV = "encoder.conv2.weight"
CODEBOOK = "encoder.quantizer.vq.layers.3._codebook.embed"
AGAIN = "download the checkpoint again"
SPARE = "remove the tensor"

Tensors = dict[str, torch.Tensor]
Damage = Callable[[Tensors], Any]


@pytest.fixture
def checkpoint(omni_checkpoint: Callable[..., Any]) -> Any:
    """Whole, in bf16, and with what a reader may ignore."""
    stored = ExportFormat(linear="fp8", experts="fp8")
    return omni_checkpoint(stored, max_shard_bytes=2**30, has_training_state=True)


def drop(name: str) -> Damage:
    return lambda tensors: tensors.pop(name)


def add(name: str, *shape: int) -> Damage:
    return lambda tensors: tensors.update({name: torch.ones(shape).bfloat16()})


def change(name: str, function: Callable[[torch.Tensor], torch.Tensor]) -> Damage:
    return lambda tensors: tensors.update({name: function(tensors[name]).contiguous()})


def quantise(name: str) -> Damage:
    """FP8 with scales, as the linears of the text model are."""

    def damage(tensors: Tensors) -> None:
        tensors[name] = tensors[name].float().to(torch.float8_e4m3fn)
        tensors[name + "_scale_inv"] = torch.ones(-(-tensors[name].shape[0] // 128), 1)

    return damage


def with_first_rows(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([0]), value)


MAIN_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (drop(QKV), f"{QKV} is missing.*vision_config.*{AGAIN}, or pass --text-only"),
    "missing_sinks": (drop(SINKS), f"{SINKS} is missing.*{AGAIN}"),
    "missing_bias": (
        drop("visual.blocks.0.mlp.up_proj.bias"),
        rf"visual\.blocks\.0\.mlp\.up_proj\.bias is missing.*{AGAIN}",
    ),
    "missing_table": (drop(TABLE), f"{TABLE} is missing.*audio_config.*--text-only"),
    "missing_projection": (
        drop("audio_encoder.projection.mlp.2.weight"),
        rf"audio_encoder\.projection\.mlp\.2\.weight is missing.*{AGAIN}",
    ),
    "extra_block": (
        add("visual.blocks.6.norm1.weight", 64),
        rf"visual\.blocks\.6\.norm1\.weight is no tensor of the vision tower.*{SPARE}",
    ),
    "extra_bias": (
        add("visual.merger.mlp.0.bias", 256),
        rf"visual\.merger\.mlp\.0\.bias is no tensor of the vision tower.*{SPARE}",
    ),
    "sinks_of_a_full_block": (
        add("visual.blocks.0.attn.sinks", 4),
        rf"visual\.blocks\.0\.attn\.sinks is no tensor.*vision_config.*{SPARE}",
    ),
    "extra_table": (
        add("speech_embeddings.20.weight", 80, 32),
        rf"speech_embeddings\.20\.weight is no tensor of the audio encoder.*{SPARE}",
    ),
    "unknown_under_a_prefix": (
        add("audio_encoder.downcast.weight", 2, 2),
        rf"audio_encoder\.downcast\.weight is no tensor of the audio encoder.*{SPARE}",
    ),
    "under_another_prefix": (
        add("vision_model.blocks.0.norm1.weight", 64),
        r"vision_model\.blocks\.0\.norm1\.weight fills no parameter.*remove it",
    ),
    "another_shape": (
        change(TABLE, lambda t: t[:-1]),
        rf"{TABLE} is \[79, 32\], not \[80, 32\].*audio_config.*{AGAIN}",
    ),
    "transposed": (
        change(QKV, torch.t),
        rf"{QKV} is \[64, 512\], not \[512, 64\].*vision_config.*{AGAIN}",
    ),
    "flattened_patches": (
        change("visual.patch_embed.proj.weight", lambda t: t.flatten(1)),
        rf"patch_embed\.proj\.weight is \[64, 1536\], not \[64, 3, 2, 16, 16\].*{AGAIN}",
    ),
    "fp8": (quantise(QKV), f"{QKV} is torch.float8_e4m3fn, but towers have.*never.*{AGAIN}"),
    "fp8_without_scales": (
        change(O_PROJ, lambda t: t.to(torch.float8_e5m2)),
        f"{O_PROJ} is torch.float8_e5m2, but towers have.*never.*{AGAIN}",
    ),
    "mxfp4": (
        change(O_PROJ, lambda t: torch.zeros(t.shape, dtype=torch.uint8)),
        f"{O_PROJ} is torch.uint8, but towers have.*never quantised: {AGAIN}",
    ),
    "scales_beside_a_float": (
        add(QKV + "_scale_inv", 4, 1),
        f"{QKV}_scale_inv is a scale, but towers are never quantised: {AGAIN}",
    ),
    "integers": (
        change(SINKS, lambda t: t.int()),
        f"{SINKS} is torch.int32, but towers have.*never quantised: {AGAIN}",
    ),
}

TOKENIZER_DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (
        drop(CONV),
        f"{CONV} of audio_tokenizer/ is missing.*audio_tokenizer/config.*--text-only",
    ),
    "missing_codebook": (drop(CODEBOOK), f"{CODEBOOK} of audio_tokenizer/ is missing.*{AGAIN}"),
    "extra_key_bias": (
        add("encoder.layers.0.self_attn.k_proj.bias", 64),
        rf"k_proj\.bias of audio_tokenizer/ is no tensor of the audio tokenizer.*{SPARE}",
    ),
    "extra_codebook": (
        add("encoder.quantizer.vq.layers.20._codebook.embed", 16, 64),
        rf"layers\.20\._codebook\.embed of audio_tokenizer/ is no tensor.*{SPARE}",
    ),
    "unknown_state": (
        add("encoder.quantizer.vq.layers.3._codebook.usage", 16),
        rf"_codebook\.usage of audio_tokenizer/ is no tensor.*{SPARE}",
    ),
    "a_decoder_in_the_encoder": (
        add("encoder.decoder.weight", 2, 2),
        rf"encoder\.decoder\.weight of audio_tokenizer/ is no tensor.*{SPARE}",
    ),
    "another_shape": (
        change(CODEBOOK, lambda t: t[:-1]),
        rf"{CODEBOOK} of audio_tokenizer/ is \[15, 64\], not \[16, 64\].*config\.json.*{AGAIN}",
    ),
    "transposed": (
        change(CONV, lambda t: t.transpose(1, 2)),
        rf"{CONV} of audio_tokenizer/ is \[64, 3, 64\], not \[64, 64, 3\].*{AGAIN}",
    ),
    "fp8": (
        quantise("encoder.layers.1.fc1.weight"),
        r"encoder\.layers\.1\.fc1\.weight of audio_tokenizer/ is torch\.float8.*never quantised",
    ),
    "codebook_in_fp16": (
        change(CODEBOOK, torch.Tensor.half),
        f"{CODEBOOK} of audio_tokenizer/ is torch.float16, but must be float32.*restore",
    ),
    "quantised_codebook": (
        change(CODEBOOK, lambda t: t.to(torch.int8)),
        f"{CODEBOOK} of audio_tokenizer/ is torch.int8, but towers have.*never.*{AGAIN}",
    ),
}


def media_of(model_dir: Path, facts: MediaFacts | None = None) -> MediaConfig:
    config = load_model_config(model_dir)
    media = load_media_config(
        model_dir, config.media, facts or MediaFacts(), hidden_size=config.hidden_size
    )
    assert media is not None
    return media


def rewrite_main(model_dir: Path, damage: Damage) -> None:
    tensors = load_file(model_dir / MAIN)
    damage(tensors)
    save_file(tensors, model_dir / MAIN)
    index = json.loads((model_dir / INDEX_NAME).read_text())
    index["weight_map"] = dict.fromkeys(tensors, MAIN)
    (model_dir / INDEX_NAME).write_text(json.dumps(index))


def rewrite_tokenizer(model_dir: Path, damage: Damage) -> None:
    path = model_dir / AUDIO_TOKENIZER_DIR / "model.safetensors"
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path)


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load_text(model_dir: Path, media: MediaConfig | None) -> None:
    config = load_model_config(model_dir)
    load_checkpoint(model_dir, config, media=media, dtype=torch.bfloat16, keep_quantised=True)


def problems_of(model_dir: Path, media: MediaConfig, *, deep: bool = False) -> str:
    config = load_model_config(model_dir)
    return "\n".join(inspect_checkpoint(model_dir, config, media=media, deep=deep).problems)


@pytest.mark.parametrize("name", MAIN_DAMAGES)
def test_a_damaged_tower_in_the_main_files_is_refused(checkpoint: Any, name: str) -> None:
    damage, message = MAIN_DAMAGES[name]
    rewrite_main(checkpoint.model_dir, damage)
    assert re.search(message, problems_of(checkpoint.model_dir, checkpoint.media, deep=True))
    with pytest.raises(CheckpointError, match=message):
        load_text(checkpoint.model_dir, checkpoint.media)
    if name != "under_another_prefix":
        with pytest.raises(CheckpointError, match=message):
            load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", TOKENIZER_DAMAGES)
def test_a_damaged_audio_tokenizer_is_refused(checkpoint: Any, name: str) -> None:
    damage, message = TOKENIZER_DAMAGES[name]
    rewrite_tokenizer(checkpoint.model_dir, damage)
    assert re.search(message, problems_of(checkpoint.model_dir, checkpoint.media, deep=True))
    with pytest.raises(CheckpointError, match=message):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)
    load_text(checkpoint.model_dir, None)


def test_the_undamaged_checkpoint_loads_and_is_whole(checkpoint: Any) -> None:
    rewrite_main(checkpoint.model_dir, lambda tensors: None)
    rewrite_tokenizer(checkpoint.model_dir, lambda tensors: None)
    assert problems_of(checkpoint.model_dir, checkpoint.media, deep=True) == ""
    load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", ["extra_bias", "unknown_under_a_prefix", "scales_beside_a_float"])
def test_what_no_tower_has_is_refused_though_only_text_is_served(
    checkpoint: Any, name: str
) -> None:
    rewrite_main(checkpoint.model_dir, MAIN_DAMAGES[name][0])
    with pytest.raises(CheckpointError, match=r"fills no parameter|without a quantised weight"):
        load_text(checkpoint.model_dir, None)


@pytest.mark.parametrize("key", ["vision_config", "audio_config"])
def test_a_tower_that_config_json_does_not_describe_is_refused(checkpoint: Any, key: str) -> None:
    path = checkpoint.model_dir / "config.json"
    raw = json.loads(path.read_text())
    del raw[key]
    path.write_text(json.dumps(raw))
    with pytest.raises(ConfigError, match=rf"config\.json has no {key}.*--text-only"):
        media_of(checkpoint.model_dir)
    with pytest.raises(CheckpointError, match="fills no parameter"):
        load_text(checkpoint.model_dir, None)


def test_a_tensor_of_a_tower_in_two_files_is_refused(checkpoint: Any) -> None:
    (checkpoint.model_dir / INDEX_NAME).unlink()
    save_file({QKV: torch.ones(512, 64)}, checkpoint.model_dir / "other.safetensors")
    message = rf"{QKV} is in {MAIN} and in other\.safetensors: remove"
    with pytest.raises(CheckpointError, match=message):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)


def test_a_tensor_of_the_audio_tokenizer_in_two_files_is_refused(checkpoint: Any) -> None:
    folder = checkpoint.model_dir / AUDIO_TOKENIZER_DIR
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"audio_tokenizer/: tensor .* is in .*: remove"):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)


@pytest.mark.parametrize("num_bytes", [0, 100, 100_000])
def test_a_truncated_audio_tokenizer_is_refused(checkpoint: Any, num_bytes: int) -> None:
    path = checkpoint.model_dir / AUDIO_TOKENIZER_DIR / "model.safetensors"
    path.write_bytes(path.read_bytes()[:num_bytes])
    message = r"audio_tokenizer/: model\.safetensors has \d+ bytes.*download it again"
    assert re.search(message, problems_of(checkpoint.model_dir, checkpoint.media))
    with pytest.raises(CheckpointError, match=message):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)


def test_a_pickled_audio_tokenizer_is_refused(checkpoint: Any) -> None:
    folder = checkpoint.model_dir / AUDIO_TOKENIZER_DIR
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    message = r"audio_tokenizer/: .*pytorch_model\.bin.*never read: convert.*--text-only"
    with pytest.raises(CheckpointError, match=message):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)


def test_a_missing_audio_tokenizer_is_refused_and_reported(checkpoint: Any) -> None:
    shutil.rmtree(checkpoint.model_dir / AUDIO_TOKENIZER_DIR)
    with pytest.raises(CheckpointError, match=r"audio_tokenizer is missing.*--text-only"):
        load_towers(checkpoint.model_dir, checkpoint.media, dtype=torch.bfloat16)
    problems = problems_of(checkpoint.model_dir, checkpoint.media)
    assert re.fullmatch(r".*/audio_tokenizer is missing: download it, or.*--text-only", problems)


@pytest.mark.parametrize("file", ["audio_tokenizer/config.json", "preprocessor_config.json"])
def test_a_missing_configuration_is_refused(checkpoint: Any, file: str) -> None:
    (checkpoint.model_dir / file).unlink()
    with pytest.raises(ConfigError, match=f"{file} does not exist: download it.*--text-only"):
        media_of(checkpoint.model_dir)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoder_layers": 3}, r"encoder\.layers\.3\.fc2\.bias of audio_tokenizer/ is no tensor"),
        ({"encoder_layers": 5}, r"encoder\.layers\.4\.fc1\.weight of audio_tokenizer/ is missing"),
        ({"d_model": 128}, r"conv1\.weight of audio_tokenizer/ is \[64, 128, 3\], not \[128, 128"),
        ({"encoder_ffn_dim": 256}, r"fc1\.weight of audio_tokenizer/ is \[128, 64\], not \[256"),
    ],
)
def test_an_audio_tokenizer_of_another_geometry_is_refused(
    checkpoint: Any, changes: dict[str, int], message: str
) -> None:
    edit_json(checkpoint.model_dir / AUDIO_TOKENIZER_DIR / "config.json", **changes)
    media = media_of(checkpoint.model_dir)
    assert re.search(message, problems_of(checkpoint.model_dir, media))
    with pytest.raises(CheckpointError, match=r"of audio_tokenizer/ is"):
        load_towers(checkpoint.model_dir, media, dtype=torch.bfloat16)


def test_rounded_codebooks_are_refused_where_exact_ones_are_asked_for(checkpoint: Any) -> None:
    rewrite_tokenizer(checkpoint.model_dir, change(CODEBOOK, torch.Tensor.bfloat16))
    media = media_of(checkpoint.model_dir, MediaFacts(audio_bf16_tables="off"))
    message = f"{CODEBOOK} .*is torch.bfloat16, but must be float32.*--audio-bf16-tables on"
    with pytest.raises(CheckpointError, match=message):
        load_towers(checkpoint.model_dir, media, dtype=torch.bfloat16)


@pytest.mark.parametrize("name", [QKV, TABLE])
def test_the_deep_report_finds_values_of_a_tower_that_are_not_numbers(
    checkpoint: Any, name: str
) -> None:
    rewrite_main(checkpoint.model_dir, change(name, with_first_rows(torch.nan)))
    assert problems_of(checkpoint.model_dir, checkpoint.media) == ""
    problems = problems_of(checkpoint.model_dir, checkpoint.media, deep=True)
    assert re.fullmatch(rf"tensor {name} has \d+ values that are NaN.*download it again", problems)


@pytest.mark.parametrize("name", [CONV, CODEBOOK])
def test_the_deep_report_finds_values_of_the_audio_tokenizer_that_are_not_numbers(
    checkpoint: Any, name: str
) -> None:
    damage = change(name, with_first_rows(torch.inf))
    rewrite_tokenizer(checkpoint.model_dir, damage)
    problems = problems_of(checkpoint.model_dir, checkpoint.media, deep=True)
    assert re.fullmatch(rf"tensor {name} has \d+ values that are NaN or infinite.*", problems)


def test_a_text_model_without_towers_is_refused_where_they_are_described(checkpoint: Any) -> None:
    def drop_towers(tensors: Tensors) -> None:
        for name in [name for name in tensors if tower_of(name)]:
            del tensors[name]

    rewrite_main(checkpoint.model_dir, drop_towers)
    with pytest.raises(CheckpointError, match=r"is missing.*--text-only\n(.*\n)*.* 119 more"):
        load_text(checkpoint.model_dir, checkpoint.media)
    load_text(checkpoint.model_dir, None)
