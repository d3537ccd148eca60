"""processor_config gives the facts of vision.md 1.2, 1.3 and audio.md 1.2, or is refused."""

from typing import Any

import pytest

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.processor import ProcessorConfig, parse_processor_config
from mimo_engine.errors import ConfigError

TOKEN_IDS = {
    "image_token_id": 151655,
    "video_token_id": 151656,
    "audio_token_id": 151669,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "video_start_token_id": 151670,
    "video_end_token_id": 151671,
    "audio_start_token_id": 151673,
    "audio_end_token_id": 151674,
}
PROCESSOR_CONFIG = {
    **TOKEN_IDS,
    "audio_avg_pooler": 2,
    "audio_channels": 20,
    "audio_fmax": None,
    "audio_fmin": 0,
    "audio_group_size": 4,
    "audio_hop_length": 240,
    "audio_input_id_per_second": 25.0,
    "audio_kernel_size": 3,
    "audio_n_mels": 128,
    "audio_nfft": 960,
    "audio_sampling_rate": 24000,
    "audio_segment_size": 6000,
    "audio_stride_size": 2,
    "audio_window_size": 960,
    "audio_zeroemb_idx": [1024] * 20,
    "fps": 1.0,
    "image_max_pixels": 8388608,
    "image_min_pixels": 8192,
    "max_frames": 3600,
    "merge_size": 2,
    "min_frames": None,
    "num_frames": None,
    "pad_token_id": 151643,
    "patch_size": 16,
    "rope_type": "rope",
    "temporal_compression_ratio": 1,
    "temporal_patch_size": 2,
    "use_per_grid_t_timestamps": False,
    "use_video_timestamps": True,
    "video_audio_interleave_length": 0.0,
    "video_max_pixels": 8388608,
    "video_min_pixels": 8192,
    "video_process_num_threads": 16,
    "video_tokens_per_second": 2,
    "video_total_max_pixels": 268435456,
}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": list(CLIP_MEAN),
    "image_std": list(CLIP_STD),
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def parse(
    facts: MediaFacts | None = None, preprocessor: dict[str, Any] | None = None, **changes: Any
) -> ProcessorConfig:
    given = PREPROCESSOR if preprocessor is None else preprocessor
    return parse_processor_config({**PROCESSOR_CONFIG, **changes}, given, facts or MediaFacts())


def test_the_released_values() -> None:
    config = parse()
    assert (config.patch_size, config.merge_size, config.temporal_patch_size) == (16, 2, 2)
    assert (config.factor, config.patch_dim) == (32, 1536)
    assert (config.image_min_pixels, config.image_max_pixels) == (8192, 8388608)
    assert (config.video_min_pixels, config.video_max_pixels) == (8192, 8388608)
    assert config.video_total_max_pixels == 268435456
    # Null in the file; every implementation puts 8 there.
    assert (config.fps, config.min_frames, config.max_frames) == (1.0, 8, 3600)
    assert (config.temporal_compression_ratio, config.interleave_s) == (1, 0.0)
    assert (config.image_mean, config.image_std) == (CLIP_MEAN, CLIP_STD)
    assert not config.uses_hub_resize_rule
    assert {name: getattr(config, name) for name in TOKEN_IDS} == TOKEN_IDS


def test_the_released_front_end_of_sound() -> None:
    config = parse()
    assert (config.sampling_rate, config.fft_size, config.hop) == (24000, 960, 240)
    assert (config.num_mels, config.mel_fmin, config.mel_fmax) == (128, 0.0, 12000.0)
    assert (config.segment_frames, config.frames_per_token) == (6000, 16)
    assert config.audio_tokens_per_second == 6.25
    assert parse(audio_fmax=8000, audio_fmin=50).mel_fmax == 8000.0


def test_open_facts_are_settings() -> None:
    facts = MediaFacts(
        resize_filter="bicubic_antialias",
        image_alpha="drop",
        exif_orientation="ignore",
        video_step_without_audio="empty_span",
    )
    config = parse(facts)
    assert config.resize_filter == "bicubic_antialias"
    assert config.image_alpha == "drop"
    assert config.exif_orientation == "ignore"
    assert config.video_step_without_audio == "empty_span"


def test_the_limits_of_images_come_from_the_file_that_the_setting_names() -> None:
    config = parse(MediaFacts(pixel_limits="preprocessor_config"))
    assert (config.image_min_pixels, config.image_max_pixels) == (3136, 12845056)
    assert config.uses_hub_resize_rule
    # Videos have one source of limits.
    assert (config.video_min_pixels, config.video_max_pixels) == (8192, 8388608)


def test_pixel_statistics_come_from_where_the_setting_says() -> None:
    imagenet = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    from_file = parse(preprocessor={**PREPROCESSOR, **imagenet})
    from_setting = parse(MediaFacts(pixel_stats="imagenet"))
    assert from_file == from_setting
    assert from_file.image_mean == (0.485, 0.456, 0.406)
    clip = parse(MediaFacts(pixel_stats="clip"), preprocessor={**PREPROCESSOR, **imagenet})
    assert clip == parse()


def test_values_of_preprocessor_config_that_nothing_reads_may_be_absent() -> None:
    statistics = {name: PREPROCESSOR[name] for name in ("image_mean", "image_std")}
    assert parse(preprocessor=statistics) == parse()
    assert parse(MediaFacts(pixel_stats="clip"), preprocessor={}) == parse()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json has no 'min_pixels'"):
        parse(MediaFacts(pixel_limits="preprocessor_config"), preprocessor=statistics)
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json has no 'image_mean'"):
        parse(preprocessor={})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": 14}, "patch_size"),
        ({"merge_size": 4}, "merge_size"),
        ({"temporal_patch_size": 1}, "temporal_patch_size"),
        ({"do_normalize": False}, "do_normalize"),
        ({"rescale_factor": 1.0}, "unknown key 'rescale_factor'"),
    ],
)
def test_what_preprocessor_config_says_otherwise_is_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=rf"preprocessor_config\.json.*{message}"):
        parse(preprocessor={**PREPROCESSOR, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"image_mean": [0.5]},
        {"image_std": [0.5, 0.5]},
        {"image_std": [0.5, 0.0, 0.5]},
        {"image_mean": ["0.5", "0.5", "0.5"]},
    ],
)
def test_pixel_statistics_that_are_none_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"image_mean.*image_std"):
        parse(preprocessor={**PREPROCESSOR, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rope_type": "mrope"}, "rope_type"),
        ({"use_video_timestamps": False}, "use_video_timestamps"),
        ({"use_per_grid_t_timestamps": True}, "use_per_grid_t_timestamps"),
        ({"audio_nfft": 1024}, "audio_nfft"),
        ({"patch_size": "16"}, "patch_size"),
        ({"audio_token_id": None}, "audio_token_id"),
        ({"audio_input_id_per_second": 50.0}, "audio_input_id_per_second"),
        ({"min_tokens": 4}, "unknown key 'min_tokens'"),
    ],
)
def test_a_value_that_cannot_be_served_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse(**changes)


# Unread, or absent from files whose value is the default.
OPTIONAL = {
    "audio_channels", "audio_fmax", "audio_fmin", "audio_input_id_per_second", "audio_kernel_size",
    "audio_zeroemb_idx", "min_frames", "num_frames", "pad_token_id", "rope_type",
    "temporal_compression_ratio", "use_per_grid_t_timestamps", "video_audio_interleave_length",
    "video_process_num_threads", "video_tokens_per_second",
}  # fmt: skip
# Absent, they take the defaults of the published code, which are other values.
WITH_OTHER_DEFAULT = {"fps": 2.0, "max_frames": 256}


@pytest.mark.parametrize("key", PROCESSOR_CONFIG)
def test_a_missing_key_is_refused_or_has_its_published_default(key: str) -> None:
    raw = {name: value for name, value in PROCESSOR_CONFIG.items() if name != key}
    if key in WITH_OTHER_DEFAULT:
        config = parse_processor_config(raw, PREPROCESSOR, MediaFacts())
        assert getattr(config, key) == WITH_OTHER_DEFAULT[key]
    elif key in OPTIONAL:
        assert parse_processor_config(raw, PREPROCESSOR, MediaFacts()) == parse()
    else:
        with pytest.raises(ConfigError, match=key):
            parse_processor_config(raw, PREPROCESSOR, MediaFacts())
