"""From media to features and placeholders: processor_config and preprocessor_config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.reader import ConfigReader
from mimo_engine.errors import ConfigError

__all__ = ["TOKEN_ID_KEYS", "ProcessorConfig", "parse_processor_config"]

TOKEN_ID_KEYS = (
    "image_token_id", "video_token_id", "audio_token_id", "vision_start_token_id",
    "vision_end_token_id", "video_start_token_id", "video_end_token_id", "audio_start_token_id",
    "audio_end_token_id",
)  # fmt: skip
CLIP_STATS = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET_STATS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True, kw_only=True, slots=True)
class ProcessorConfig:
    """From media to features and placeholders (vision.md 1.2 and 1.3, audio.md 1.2)."""

    patch_size: int
    merge_size: int
    temporal_patch_size: int
    image_min_pixels: int
    image_max_pixels: int
    video_min_pixels: int
    video_max_pixels: int
    video_total_max_pixels: int
    temporal_compression_ratio: int
    fps: float
    min_frames: int
    max_frames: int
    interleave_s: float
    """video_audio_interleave_length: 0 a group for each grid step, -1 one group, else seconds."""
    sampling_rate: int
    num_mels: int
    fft_size: int
    hop: int
    mel_fmin: float
    mel_fmax: float
    segment_frames: int
    frames_per_token: int
    """Mel frames that become one token."""
    image_mean: tuple[float, float, float]
    """Of pixels in 0 ... 1."""
    image_std: tuple[float, float, float]
    uses_hub_resize_rule: bool
    """Sizes by the rule of preprocessor_config.json's own processor (settings.md, pixel_limits)."""
    resize_filter: str
    image_alpha: str
    exif_orientation: str
    video_step_without_audio: str
    image_token_id: int
    video_token_id: int
    audio_token_id: int
    vision_start_token_id: int
    vision_end_token_id: int
    video_start_token_id: int
    video_end_token_id: int
    audio_start_token_id: int
    audio_end_token_id: int

    @property
    def factor(self) -> int:
        """Pixels of a token's side: sizes are multiples of it."""
        return self.patch_size * self.merge_size

    @property
    def patch_dim(self) -> int:
        return 3 * self.temporal_patch_size * self.patch_size**2

    @property
    def audio_tokens_per_second(self) -> float:
        return self.sampling_rate / self.hop / self.frames_per_token


def parse_processor_config(
    raw: Mapping[str, Any], preprocessor: Mapping[str, Any], facts: MediaFacts
) -> ProcessorConfig:
    """processor_config, with mean and standard deviation as `facts.pixel_stats` says.

    preprocessor: preprocessor_config.json. Raises ConfigError.
    """
    reader = ConfigReader(raw, where="processor_config")
    reader.require("rope_type", "rope", default="rope")
    reader.require("use_video_timestamps", True)
    reader.require("use_per_grid_t_timestamps", False, default=False)
    window = reader.take("audio_window_size", int)
    reader.require("audio_nfft", window)
    hub = facts.pixel_limits == "preprocessor_config"
    limits = ConfigReader(preprocessor, where="preprocessor_config.json")
    low, high = reader.take("image_min_pixels", int), reader.take("image_max_pixels", int)
    if hub:
        low, high = limits.take("min_pixels", int), limits.take("max_pixels", int)
    stride, pooler = reader.take("audio_stride_size", int), reader.take("audio_avg_pooler", int)
    rate = reader.take("audio_sampling_rate", int)
    fmax = reader.take("audio_fmax", float, default=None)
    mean, std = _pixel_stats(limits, facts)
    hop = reader.take("audio_hop_length", int)
    codes_per_second = rate / hop / (stride * pooler)
    reader.require("audio_input_id_per_second", codes_per_second, default=codes_per_second)
    config = ProcessorConfig(
        patch_size=reader.take("patch_size", int),
        merge_size=reader.take("merge_size", int),
        temporal_patch_size=reader.take("temporal_patch_size", int),
        image_min_pixels=low,
        image_max_pixels=high,
        video_min_pixels=reader.take("video_min_pixels", int),
        video_max_pixels=reader.take("video_max_pixels", int),
        video_total_max_pixels=reader.take("video_total_max_pixels", int),
        temporal_compression_ratio=reader.take("temporal_compression_ratio", int, default=1),
        fps=float(reader.take("fps", float, default=2.0)),
        min_frames=reader.take("min_frames", int, default=8),
        max_frames=reader.take("max_frames", int, default=256),
        interleave_s=float(reader.take("video_audio_interleave_length", float, default=0.0)),
        sampling_rate=rate,
        num_mels=reader.take("audio_n_mels", int),
        fft_size=window,
        hop=hop,
        mel_fmin=float(reader.take("audio_fmin", float, default=0.0)),
        mel_fmax=rate / 2 if fmax is None else float(fmax),
        segment_frames=reader.take("audio_segment_size", int),
        frames_per_token=stride * pooler * reader.take("audio_group_size", int),
        image_mean=mean,
        image_std=std,
        uses_hub_resize_rule=hub,
        resize_filter=facts.resize_filter,
        image_alpha=facts.image_alpha,
        exif_orientation=facts.exif_orientation,
        video_step_without_audio=facts.video_step_without_audio,
        **{name: reader.take(name, int) for name in TOKEN_ID_KEYS},
    )
    reader.finish(_UNUSED_PROCESSOR, remedy=None)
    _check_rest(limits, config)
    return config


def _check_rest(preprocessor: ConfigReader, config: ProcessorConfig) -> None:
    """What preprocessor_config.json says besides limits and statistics is what is done."""
    for name in ("patch_size", "merge_size", "temporal_patch_size"):
        preprocessor.require(name, getattr(config, name), default=getattr(config, name))
    for name in ("do_convert_rgb", "do_normalize", "do_rescale", "do_resize"):
        preprocessor.require(name, True, default=True)
    preprocessor.finish(_UNUSED_PREPROCESSOR, remedy=None)


_UNUSED_PROCESSOR = {
    "audio_channels": "compared with audio_config (config/media.py)",
    "audio_kernel_size": "compared with audio_tokenizer/config.json (config/media.py)",
    "audio_zeroemb_idx": "never looked up (audio.md 4)",
    "num_frames": "has no effect upstream (vision.md 5.2)",
    "pad_token_id": "config.json says it",
    "video_process_num_threads": "a setting of the vendor's server",
    "video_tokens_per_second": "unused with 1-D positions (vision.md 1.2)",
}

_UNUSED_PREPROCESSOR = {
    "image_mean": "unless --pixel-stats asks for it",
    "image_std": "as image_mean",
    "image_processor_type": "a name",
    "max_pixels": "unless --pixel-limits asks for it",
    "min_pixels": "as max_pixels",
    "processor_class": "a name",
    "resample": "--resize-filter says it",
}


def _pixel_stats(
    reader: ConfigReader, facts: MediaFacts
) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    if facts.pixel_stats == "clip":
        return CLIP_STATS
    if facts.pixel_stats == "imagenet":
        return IMAGENET_STATS
    mean, std = reader.take("image_mean", list), reader.take("image_std", list)
    numbers = [value for value in (*mean, *std) if isinstance(value, int | float)]
    if len(mean) != 3 or len(std) != 3 or len(numbers) != 6 or min(std) <= 0:
        raise ConfigError(f"preprocessor_config.json: image_mean {mean} and image_std {std}")
    return (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
