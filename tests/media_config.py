"""The media configuration of the published V2.5 checkpoint, for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.processor import ProcessorConfig, parse_processor_config

DATA = Path(__file__).parent / "data"

PREPROCESSOR = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}


def processor_config(facts: MediaFacts | None = None, **changes: Any) -> ProcessorConfig:
    """processor_config of MiMo-V2.5 under `facts`, with `changes` to its fields."""
    raw = json.loads((DATA / "config-mimo-v2.5.json").read_text(encoding="utf-8"))
    config = parse_processor_config(raw["processor_config"], PREPROCESSOR, facts or MediaFacts())
    return replace(config, **changes)
