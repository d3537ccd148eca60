"""The towers of `mimo-engine random-checkpoint`: which they are, and that they tell media apart."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mimo_engine.checkpoint.load import load_checkpoint
from mimo_engine.checkpoint.names import tower_of
from mimo_engine.checkpoint.report import inspect_checkpoint
from mimo_engine.checkpoint.tower_params import Tower
from mimo_engine.checkpoint.towers import TowerWeights, load_towers
from mimo_engine.cli.main import main
from mimo_engine.cli.random_checkpoint import SMALL_MODEL
from mimo_engine.cli.tower_files import SMALL_AUDIO_TOKENIZER
from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig, load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.config.processor import TOKEN_ID_KEYS
from mimo_engine.model.audio_encoder import MiMoAudioEncoder
from mimo_engine.model.audio_tokenizer import MiMoAudioTokenizer
from mimo_engine.model.vision import MiMoVisionTransformer

V25 = Path(__file__).parents[2] / "data" / "config-mimo-v2.5.json"
TOKENS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "audio_token_id": "<|audio_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "video_start_token_id": "<|mimo_video_start|>",
    "video_end_token_id": "<|mimo_video_end|>",
    "audio_start_token_id": "<|mimo_audio_start|>",
    "audio_end_token_id": "<|mimo_audio_end|>",
}


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("random") / "small"
    assert main(["random-checkpoint", str(out)]) == 0
    return out


def media_of(model_dir: Path) -> MediaConfig | None:
    config = load_model_config(model_dir)
    return load_media_config(model_dir, config.media, MediaFacts(), hidden_size=config.hidden_size)


def loaded_from(model_dir: Path) -> tuple[MediaConfig, TowerWeights]:
    media = media_of(model_dir)
    assert media is not None
    return media, load_towers(model_dir, media, dtype=torch.float32)


def rows_differ(first: torch.Tensor, second: torch.Tensor) -> bool:
    return bool(torch.cosine_similarity(first.flatten(), second.flatten(), dim=0) < 0.9)


def test_the_default_model_has_small_towers_of_every_kind_of_block(small: Path) -> None:
    media = media_of(small)
    assert media is not None
    kinds = [(layer.order, layer.window, layer.has_sinks) for layer in media.vision.layers]
    assert len(set(kinds)) == 3
    assert media.vision.head_dim == 64
    assert len(set(media.audio_tokenizer.windows)) == 2
    assert len(media.audio_tokenizer.codebook_sizes) == media.audio.num_channels == 20
    main_bytes = sum(
        tensor.nbytes
        for path in small.glob("*.safetensors")
        for name, tensor in load_file(path).items()
        if tower_of(name)
    )
    tokenizer_bytes = (small / AUDIO_TOKENIZER_DIR / "model.safetensors").stat().st_size
    assert main_bytes + tokenizer_bytes < 3e6


def test_the_media_tokens_are_those_of_the_tokenizer_by_name(small: Path) -> None:
    tokenizer = json.loads((small / "tokenizer.json").read_text())
    by_name = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    media = media_of(small)
    assert media is not None
    assert set(TOKENS) == set(TOKEN_ID_KEYS)
    for key, token in TOKENS.items():
        assert getattr(media.processor, key) == by_name[token], key
    raw = json.loads((small / "config.json").read_text())
    top = {key for key in TOKENS if key in raw}
    released = json.loads(V25.read_text())
    assert top == {key for key in TOKENS if key in released}


def test_the_default_configuration_has_the_keys_of_a_release(small: Path) -> None:
    raw, released = json.loads((small / "config.json").read_text()), json.loads(V25.read_text())
    assert set(released["vision_config"]) == set(raw["vision_config"])
    assert set(released["audio_config"]) == set(raw["audio_config"])
    assert set(released["processor_config"]) == set(raw["processor_config"])


def test_pictures_are_told_apart_by_rows_of_the_size_of_embeddings(small: Path) -> None:
    media, weights = loaded_from(small)
    tower = MiMoVisionTransformer.from_weights(media.vision, weights[Tower.VISION])
    generator = torch.Generator().manual_seed(1)
    pictures = {
        "bright": torch.full((64, media.vision.patch_dim), 1.5),
        "dark": torch.full((64, media.vision.patch_dim), -1.5),
        "noise": torch.randn(64, media.vision.patch_dim, generator=generator),
    }
    with torch.inference_mode():
        rows = {name: tower(patches, [(1, 8, 8)]) for name, patches in pictures.items()}
    for name, tensor in rows.items():
        assert tensor.shape == (16, 256)
        assert 0.3 < tensor.std() < 3, name
        assert all(rows_differ(tensor, rows[other]) for other in rows if other != name)


def test_sounds_are_told_apart_by_codes_and_by_rows_of_the_size_of_embeddings(
    small: Path,
) -> None:
    media, weights = loaded_from(small)
    tokenizer = MiMoAudioTokenizer.from_weights(
        media.audio_tokenizer, weights[Tower.AUDIO_TOKENIZER]
    )
    encoder = MiMoAudioEncoder.from_weights(media.audio, weights[Tower.AUDIO_ENCODER])
    bands = torch.arange(128.0)
    sounds = {
        "silence": torch.full((200, 128), -16.1),
        "low": (4 - bands / 6).repeat(200, 1),
        "high": (bands / 6 - 16).repeat(200, 1),
    }
    with torch.inference_mode():
        codes = {name: tokenizer([mel])[0] for name, mel in sounds.items()}
        rows = {name: encoder(found) for name, found in codes.items()}
    for name, tensor in rows.items():
        assert tensor.shape == (13, 256)
        assert 0.3 < tensor.std() < 3, name
        for other in rows:
            if other != name:
                assert (codes[name] != codes[other]).float().mean() > 0.2
                assert rows_differ(tensor, rows[other])


def test_text_only_writes_the_same_text_model_and_no_tower(small: Path, tmp_path: Path) -> None:
    out = tmp_path / "text"
    assert main(["random-checkpoint", str(out), "--text-only"]) == 0
    assert not load_model_config(out).media
    assert media_of(out) is None
    assert {path.name for path in small.iterdir()} - {path.name for path in out.iterdir()} == {
        AUDIO_TOKENIZER_DIR,
        "preprocessor_config.json",
    }
    text, omni = (
        load_checkpoint(path, load_model_config(path), dtype=torch.float32, keep_quantised=False)
        for path in (out, small)
    )
    assert list(text) == list(omni)
    for name, weight in text.items():
        assert isinstance(weight, torch.Tensor)
        other = omni[name]
        assert isinstance(other, torch.Tensor)
        assert torch.equal(weight, other), name


def test_like_a_directory_keeps_its_towers(small: Path, tmp_path: Path) -> None:
    like, out = tmp_path / "like", tmp_path / "out"
    (like / AUDIO_TOKENIZER_DIR).mkdir(parents=True)
    changed = {**SMALL_AUDIO_TOKENIZER, "encoder_layers": 3, "decoder_layers": 7}
    (like / AUDIO_TOKENIZER_DIR / "config.json").write_text(json.dumps(changed))
    preprocessor = json.loads((small / "preprocessor_config.json").read_text())
    preprocessor["image_mean"] = [0.5, 0.25, 0.75]
    (like / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    raw = json.loads((small / "config.json").read_text())
    raw["audio_config"]["input_local_layers"] = 1
    (like / "config.json").write_text(json.dumps(raw))
    flags = ["--like", str(like), "--hidden-size", "128", "--num-layers", "2"]
    assert main(["random-checkpoint", str(out), *flags]) == 0
    media = media_of(out)
    assert media is not None
    assert media.audio_tokenizer.num_layers == 3
    assert media.audio.num_layers == 1
    assert media.processor.image_mean == (0.5, 0.25, 0.75)
    assert media.vision.out_hidden_size == media.audio.out_hidden_size == 128
    report = inspect_checkpoint(out, load_model_config(out), media=media, deep=True)
    assert report.problems == ()


def test_a_released_model_can_have_the_small_towers(tmp_path: Path) -> None:
    out = tmp_path / "out"
    flags = {
        "--like": V25,
        "--num-layers": 2,
        "--num-mtp-layers": 0,
        "--hidden-size": 64,
        "--intermediate-size": 128,
        "--moe-intermediate-size": 32,
        "--num-experts": 8,
        "--vocab-size": 600,
    }
    arguments = [str(part) for flag in flags.items() for part in flag]
    assert main(["random-checkpoint", str(out), *arguments, "--small-towers"]) == 0
    media = media_of(out)
    assert media is not None
    assert len(media.vision.layers) == 6
    assert media.vision.out_hidden_size == 64
    report = inspect_checkpoint(out, load_model_config(out), media=media)
    assert report.problems == ()


def test_for_a_config_json_alone_the_released_audio_tokenizer_stands_in(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(SMALL_MODEL))
    # Its codes do not fit the small tables, which is how this shows without 600 MB of weights.
    assert main(["random-checkpoint", str(tmp_path / "out"), "--like", str(path)]) == 1
    assert "which do not hold the codes of the tokenizer's (1024, 1024, 256" in (
        capsys.readouterr().err
    )
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("key", ["vision_config", "audio_config", "processor_config"])
def test_like_a_config_with_some_parts_of_the_towers_is_refused(
    key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw: dict[str, Any] = dict(SMALL_MODEL)
    del raw[key]
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw))
    assert main(["random-checkpoint", str(tmp_path / "out"), "--like", str(path)]) == 1
    assert f"config.json has no {key}" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [path]


def test_check_reports_the_towers_and_text_only_leaves_them_out(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(small), "--deep"]) == 0
    report = capsys.readouterr().out
    assert "vision tower: 80 bfloat16" in report
    assert "audio tokenizer: 69 bfloat16, 20 float32" in report
    assert "only text is served" not in report
    assert main(["check", str(small), "--text-only"]) == 0
    report = capsys.readouterr().out
    assert "vision tower:" not in report
    assert "ignored: 80 (vision tower; only text is served)" in report


def test_check_names_what_is_wrong_with_a_tower_and_exits_with_1(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    for path in small.iterdir():
        if path.name != AUDIO_TOKENIZER_DIR:
            (broken / path.name).symlink_to(path)
    assert main(["check", str(broken)]) == 1
    assert "audio_tokenizer/config.json does not exist: download it" in capsys.readouterr().err
    (broken / AUDIO_TOKENIZER_DIR).mkdir()
    config = small / AUDIO_TOKENIZER_DIR / "config.json"
    (broken / AUDIO_TOKENIZER_DIR / "config.json").symlink_to(config)
    assert main(["check", str(broken)]) == 1
    errors = capsys.readouterr().err
    assert "error: audio_tokenizer/: " in errors
    assert "pass --text-only" in errors
    assert main(["check", str(broken), "--text-only"]) == 0
