"""A checkpoint's towers are read from its files together, and parts that disagree are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from mimo_engine.config.audio import AUDIO_TOKENIZER_DIR
from mimo_engine.config.media import MediaConfig, load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.errors import ConfigError

DATA = Path(__file__).parents[2] / "data"
TOKENIZER_CONFIG = {
    "d_model": 1024,
    "encoder_layers": 24,
    "encoder_attention_heads": 16,
    "encoder_ffn_dim": 4096,
    "encoder_causal": True,
    "encoder_attn_window_size": [128, 0],
    "hybrid_attention": True,
    "encoder_skip_layer_id": 3,
    "kernel_size": 3,
    "stride_size": 2,
    "avg_pooler": 2,
    "num_quantizers": 20,
    "codebook_size": [1024, 1024, 256, *[128] * 17],
    "n_mels": 128,
    "rope_theta": 10000,
}
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}


class Folder:
    """The configuration files of a checkpoint, to be changed before they are read."""

    def __init__(self, path: Path, member: str) -> None:
        self.path = path
        self.raw: dict[str, Any] = json.loads((DATA / f"config-mimo-{member}.json").read_text())
        self.tokenizer: dict[str, Any] = dict(TOKENIZER_CONFIG)
        self.preprocessor: dict[str, Any] = dict(PREPROCESSOR)

    def load(self, facts: MediaFacts | None = None) -> MediaConfig | None:
        (self.path / AUDIO_TOKENIZER_DIR).mkdir(exist_ok=True)
        for name, content in (
            ("config.json", self.raw),
            ("preprocessor_config.json", self.preprocessor),
            (f"{AUDIO_TOKENIZER_DIR}/config.json", self.tokenizer),
        ):
            (self.path / name).write_text(json.dumps(content))
        return self.read(facts)

    def read(self, facts: MediaFacts | None = None) -> MediaConfig | None:
        model = load_model_config(self.path)
        return load_media_config(
            self.path, model.media, facts or MediaFacts(), hidden_size=model.hidden_size
        )


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path, "v2.5")


@pytest.mark.parametrize("member", ["v2.5", "v2.5-base", "v2.6-flash"])
def test_every_member_with_towers_has_the_same_ones(tmp_path: Path, member: str) -> None:
    config = Folder(tmp_path, member).load()
    assert config is not None
    assert len(config.vision.layers) == 28
    assert config.audio_tokenizer.num_layers == 24
    assert config.audio.num_layers == 6
    assert config.processor.frames_per_token == 16


@pytest.mark.parametrize("member", ["v2-flash", "v2.5-pro", "v2.6-pro"])
def test_a_member_without_towers_needs_none_of_their_files(tmp_path: Path, member: str) -> None:
    raw = (DATA / f"config-mimo-{member}.json").read_text()
    (tmp_path / "config.json").write_text(raw)
    assert Folder(tmp_path, member).read() is None


@pytest.mark.parametrize("part", ["vision_config", "audio_config", "processor_config"])
def test_some_of_the_parts_are_no_checkpoint(folder: Folder, part: str) -> None:
    del folder.raw[part]
    with pytest.raises(ConfigError, match=rf"has no {part} beside .*--text-only"):
        folder.load()


@pytest.mark.parametrize("name", ["preprocessor_config.json", f"{AUDIO_TOKENIZER_DIR}/config.json"])
def test_a_file_that_is_missing_or_no_object_is_named(folder: Folder, name: str) -> None:
    folder.load()
    path = folder.path / name
    path.unlink()
    with pytest.raises(ConfigError, match=rf"{name} does not exist.*--text-only"):
        folder.read()
    path.write_text("{")
    with pytest.raises(ConfigError, match=rf"{name} is not JSON"):
        folder.read()
    path.write_text("[]")
    with pytest.raises(ConfigError, match=rf"{name} must hold a JSON object"):
        folder.read()


@pytest.mark.parametrize(
    ("part", "changes", "message"),
    [
        ("vision_config", {"patch_size": 14, "spatial_patch_size": 14}, "patch_size is 14"),
        ("vision_config", {"spatial_merge_size": 4}, "merge_size is 4"),
        ("vision_config", {"temporal_patch_size": 1}, "temporal_patch_size is 1"),
        ("vision_config", {"in_chans": 4}, "in_chans is 4"),
        ("vision_config", {"out_hidden_size": 6144}, "out_hidden_size of vision_config is 6144"),
        ("audio_config", {"out_hidden_size": 6144}, "out_hidden_size of audio_config is 6144"),
        ("audio_config", {"audio_segment_size": 3000}, "audio_segment_size is 3000"),
        ("audio_config", {"group_size": 2}, "mel frames of a token is 8"),
        ("audio_config", {"audio_channels": 24}, "audio_channels is 20"),
        ("processor_config", {"audio_kernel_size": 7}, "audio_kernel_size is 7"),
        ("audio_config", {"speech_vocab_size": "1000"}, "do not hold the codes"),
        ("processor_config", {"image_token_id": 7}, "image_token_id is 151655"),
        ("processor_config", {"audio_n_mels": 80}, "n_mels is 128"),
        (
            "processor_config",
            {"audio_avg_pooler": 1, "audio_stride_size": 4, "audio_group_size": 8},
            "mel frames of a token is 16",
        ),
    ],
)
def test_two_descriptions_of_one_thing_must_be_equal(
    folder: Folder, part: str, changes: dict[str, Any], message: str
) -> None:
    folder.raw[part] |= changes
    with pytest.raises(ConfigError, match=message):
        folder.load()


def test_channels_that_no_level_gives_are_refused(folder: Folder) -> None:
    for part in ("audio_config", "processor_config"):
        folder.raw[part]["audio_channels"] = 24
    with pytest.raises(ConfigError, match="24 channels"):
        folder.load()


def test_the_front_end_of_sound_is_compared_where_the_tokenizer_describes_it(
    folder: Folder,
) -> None:
    folder.tokenizer |= {
        "sampling_rate": 24000,
        "nfft": 960,
        "window_size": 960,
        "hop_length": 240,
        "fmin": 0,
        "fmax": None,
    }
    assert folder.load() is not None
    for key, value in (("sampling_rate", 16000), ("nfft", 1024), ("hop_length", 160), ("fmin", 20)):
        own, folder.tokenizer = folder.tokenizer, folder.tokenizer | {key: value}
        with pytest.raises(ConfigError, match=rf"{key} is {value} in audio_tokenizer"):
            folder.load()
        folder.tokenizer = own


def test_a_segment_is_whole_tokens(folder: Folder) -> None:
    for part in ("audio_config", "processor_config"):
        folder.raw[part]["audio_segment_size"] = 6001
    with pytest.raises(ConfigError, match="no multiple"):
        folder.load()


def test_a_tokenizer_may_have_more_levels_than_the_encoder_reads(folder: Folder) -> None:
    for part in ("audio_config", "processor_config"):
        folder.raw[part]["audio_channels"] = 8
    config = folder.load()
    assert config is not None
    assert (config.audio.num_channels, len(config.audio_tokenizer.codebook_sizes)) == (8, 20)


def test_settings_reach_every_part(folder: Folder) -> None:
    facts = MediaFacts(
        vision_sinks="key0", pixel_limits="preprocessor_config", audio_mask="bidirectional"
    )
    config = folder.load(facts)
    assert config is not None
    assert config.vision.sinks == "key0"
    assert config.processor.uses_hub_resize_rule
    assert not config.audio_tokenizer.is_causal
