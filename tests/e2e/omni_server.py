"""A small random checkpoint with towers, and the real server over the real engine on it."""

import base64
from pathlib import Path

from fake_server import ServerThread

from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.server import GuardConfig

BUILD = "mimo_engine.engine.core:build_engine"


def make_omni(directory, *options):
    """Write the checkpoint to `directory`, which must not exist, and return it as text."""
    assert main(["random-checkpoint", str(directory), "--format", "bf16", *options]) == 0
    return str(directory)


def omni_config(model, **parts):
    parts = {
        "cache": CacheConfig(kv_cache_gib=0.5),
        "scheduler": SchedulerConfig(max_num_seqs=8, max_num_batched_tokens=256),
        **parts,
    }
    return EngineConfig(model=model, device="cpu", **parts)


def omni_server(model, *, limits=None, restart_policy=None, guards=None, **parts):
    return ServerThread(
        Path(model),
        omni_config(model, **parts),
        BUILD,
        restart_policy=restart_policy,
        media=limits or MediaLimits(),
        guards=guards or GuardConfig(),
    )


def data_uri(data, media_type="application/octet-stream"):
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


def image_part(data, **options):
    return {"type": "image_url", "image_url": {"url": data_uri(data, "image/png"), **options}}


def video_part(data, **options):
    return {"type": "video_url", "video_url": {"url": data_uri(data, "video/mp4"), **options}}


def audio_part(data):
    return {"type": "audio_url", "audio_url": {"url": data_uri(data, "audio/wav")}}


def input_audio_part(data, audio_format):
    audio = {"data": base64.b64encode(data).decode(), "format": audio_format}
    return {"type": "input_audio", "input_audio": audio}


def text_part(text):
    return {"type": "text", "text": text}


def user(*parts):
    return {"role": "user", "content": [text_part(p) if isinstance(p, str) else p for p in parts]}
