"""All towers of a checkpoint: vision_config, audio_config, processor_config, and the files beside
config.json that go with them.

No file outside this package reads those, and none holds a default for a missing key. As in
`model.py`, each key is read, or known to change nothing (with the reason), or an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mimo_engine.config.audio import (
    AUDIO_TOKENIZER_DIR,
    AudioEncoderConfig,
    AudioTokenizerConfig,
    parse_audio_config,
    parse_audio_tokenizer_config,
)
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.config.processor import TOKEN_ID_KEYS, ProcessorConfig, parse_processor_config
from mimo_engine.config.reader import read_json_object
from mimo_engine.config.vision import MiMoVLVisionConfig, parse_vision_config
from mimo_engine.errors import ConfigError

__all__ = ["MediaConfig", "load_media_config", "served_media"]

_IF_MISSING = "download it (the towers are nothing without it), or pass --text-only"


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaConfig:
    """All towers of a checkpoint."""

    vision: MiMoVLVisionConfig
    audio_tokenizer: AudioTokenizerConfig
    audio: AudioEncoderConfig
    processor: ProcessorConfig


def served_media(config: EngineConfig) -> MediaConfig | None:
    """The towers that an engine of `config` has; None: it serves text alone. Raises ConfigError."""
    if config.media.text_only:
        return None
    model_dir = Path(config.model)
    model = load_model_config(model_dir, ignore_keys=config.settings.ignore_config_key)
    return load_media_config(model_dir, model.media, config.media, hidden_size=model.hidden_size)


def load_media_config(
    model_dir: Path, media: Mapping[str, Any], facts: MediaFacts, *, hidden_size: int
) -> MediaConfig | None:
    """The towers of the checkpoint in `model_dir`; None when its config.json describes none.

    media: the media keys of config.json (`ModelConfig.media`). hidden_size: the language model's.
    Raises ConfigError, also for a checkpoint with some of the parts only.
    """
    parts = ("vision_config", "audio_config", "processor_config")
    missing = [key for key in parts if not media.get(key)]
    if len(missing) == len(parts):
        return None
    if missing:
        raise ConfigError(
            f"config.json has no {', '.join(missing)} beside "
            f"{', '.join(key for key in parts if key not in missing)}: use the checkpoint's own "
            "config.json, or pass --text-only"
        )
    vision = parse_vision_config(media["vision_config"], facts)
    audio = parse_audio_config(media["audio_config"])
    tokenizer_raw = read_json_object(
        model_dir / AUDIO_TOKENIZER_DIR / "config.json", if_missing=_IF_MISSING
    )
    tokenizer = parse_audio_tokenizer_config(tokenizer_raw, facts)
    preprocessor = read_json_object(model_dir / "preprocessor_config.json", if_missing=_IF_MISSING)
    processor = parse_processor_config(media["processor_config"], preprocessor, facts)
    _check_agreement(vision, tokenizer, audio, processor, media, hidden_size)
    _check_front_end(tokenizer_raw, processor)
    return MediaConfig(vision=vision, audio_tokenizer=tokenizer, audio=audio, processor=processor)


def _check_agreement(
    vision: MiMoVLVisionConfig,
    tokenizer: AudioTokenizerConfig,
    audio: AudioEncoderConfig,
    processor: ProcessorConfig,
    media: Mapping[str, Any],
    hidden_size: int,
) -> None:
    """Two descriptions of one thing must be equal: a mismatch is a model that is silently wrong."""
    processor_raw = media["processor_config"]
    pairs = (
        ("patch_size", vision.patch_size, processor.patch_size),
        ("merge_size", vision.spatial_merge_size, processor.merge_size),
        ("temporal_patch_size", vision.temporal_patch_size, processor.temporal_patch_size),
        ("out_hidden_size of vision_config", vision.out_hidden_size, hidden_size),
        ("out_hidden_size of audio_config", audio.out_hidden_size, hidden_size),
        ("audio_segment_size", audio.segment_frames, processor.segment_frames),
        ("n_mels", tokenizer.num_mels, processor.num_mels),
        ("in_chans", vision.in_channels, 3),
        (
            "mel frames of a token",
            tokenizer.stride * tokenizer.pool * audio.group_size,
            processor.frames_per_token,
        ),
        *(
            (name, processor_raw[name], value)
            for name, value in (
                ("audio_channels", audio.num_channels),
                ("audio_kernel_size", tokenizer.kernel_size),
            )
            if processor_raw.get(name) is not None
        ),
        *(
            (name, media[name], getattr(processor, name))
            for name in TOKEN_ID_KEYS
            if media.get(name) is not None
        ),
    )
    for name, first, second in pairs:
        if first != second:
            raise ConfigError(
                f"{name} is {first} in one place of the checkpoint's configuration and {second} "
                "in another: use the checkpoint's own files"
            )
    if audio.num_channels > len(tokenizer.codebook_sizes) or any(
        size > rows for size, rows in zip(tokenizer.codebook_sizes, audio.vocab_sizes, strict=False)
    ):
        raise ConfigError(
            f"audio_config has {audio.num_channels} channels of {audio.vocab_sizes} rows, which "
            f"do not hold the codes of the tokenizer's {tokenizer.codebook_sizes}"
        )
    if processor.segment_frames % processor.frames_per_token:
        raise ConfigError("audio_segment_size is no multiple of the mel frames of a token")


# Keys of the tokenizer's file, and what processor_config has of them.
_FRONT_END = {
    "sampling_rate": "sampling_rate",
    "nfft": "fft_size",
    "window_size": "fft_size",
    "hop_length": "hop",
    "fmin": "mel_fmin",
    "fmax": "mel_fmax",
}


def _check_front_end(tokenizer_raw: Mapping[str, Any], processor: ProcessorConfig) -> None:
    """The tokenizer's file says of the mel front end what processor_config says, or nothing."""
    for key, name in _FRONT_END.items():
        found, used = tokenizer_raw.get(key), getattr(processor, name)
        if found is not None and found != used:
            raise ConfigError(
                f"{key} is {found!r} in {AUDIO_TOKENIZER_DIR}/config.json and {used} in "
                "processor_config: use the checkpoint's own files"
            )
