"""What a user may choose about media: facts that public sources leave open, and limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mimo_engine.errors import ConfigError

__all__ = ["EncoderConfig", "MediaFacts", "MediaLimits"]


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaFacts:
    """Facts about the towers that public sources do not settle; `check --towers` finds out."""

    text_only: bool = False
    """Load no tower and refuse images, audio and video: their memory goes to the KV cache."""
    vision_sinks: Literal["extra_column", "key0"] = "extra_column"
    """Sinks of windowed vision layers: a softmax column without a value, or added to key 0."""
    vision_merger_norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    """The norm before patches are merged into a token."""
    pixel_stats: Literal["file", "clip", "imagenet"] = "file"
    """Mean and deviation of pixels; file: as preprocessor_config.json says."""
    resize_filter: Literal["bilinear", "bicubic_antialias"] = "bilinear"
    """How pictures are resized: float bilinear without antialiasing, as the vendor serves them, or
    8-bit bicubic with it."""
    pixel_limits: Literal["processor_config", "preprocessor_config"] = "processor_config"
    """Which file's limits and size rule hold for images."""
    image_alpha: Literal["white", "drop"] = "white"
    """Transparent pixels: put on white, or the alpha channel dropped."""
    exif_orientation: Literal["apply", "ignore"] = "apply"
    """Turn pictures as their EXIF data says, or leave them as stored."""
    audio_mask: Literal["causal", "bidirectional"] = "causal"
    """Attention of the audio tokenizer."""
    audio_bf16_tables: Literal["on", "off"] = "on"
    """Round codebooks and rotary frequencies of the audio tokenizer to bf16, as published code
    does."""
    video_step_without_audio: Literal["none", "empty_span"] = "none"
    """A step of a video that its sound does not reach: nothing, or an empty pair of audio marks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaLimits:
    """What media a request may bring, and from where."""

    media_root: tuple[str, ...] = ()
    """A directory whose files may be named by path or file:// URL. Default: none may."""
    allow_private_media_hosts: bool = False
    """Fetch from loopback, private and link-local addresses too."""
    media_timeout_s: float = 30.0
    """Longest time, in seconds, for fetching one URL, redirects included."""
    max_media_mib: float = 256.0
    """Largest file or body of one image, video or audio clip, in MiB."""
    max_media_items: int = 256
    """Images, videos and audio clips in one request."""
    max_image_megapixels: float = 179.0
    """Largest image that is decoded, in millions of pixels as stored."""
    max_audio_s: float = 3600.0
    """Longest audio clip, in seconds; also the sound of a video."""

    def __post_init__(self) -> None:
        for name in ("media_timeout_s", "max_media_mib", "max_image_megapixels", "max_audio_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')} must be positive")
        if self.max_media_items < 1:
            raise ConfigError("--max-media-items must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderConfig:
    """When the towers run, and what is kept of their work."""

    max_encoder_tokens: int = 1024
    """Media tokens to encode in one step, beside its text; at least one image, pair of video frames
    or minute of audio."""
    encoder_cache_gib: float = 4.0
    """Host memory, GiB, for encoded media: of running requests, and of earlier ones for reuse."""

    def __post_init__(self) -> None:
        if self.max_encoder_tokens < 1:
            raise ConfigError("--max-encoder-tokens must be at least 1")
        if not 0 < self.encoder_cache_gib < math.inf:
            raise ConfigError("--encoder-cache-gib must be positive")
