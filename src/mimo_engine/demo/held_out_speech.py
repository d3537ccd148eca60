"""The test split's bank as it ships: Opus files, one a voice, in `data/speech`.

    VOICE.opus      all words of the vocabulary, end to end
    clips.json      {"words": [...], "ends": {VOICE: samples at 24 kHz where each word ends}}

So held-out speech is the same everywhere and needs no eSpeak. `tools/demo_speech.py` makes it.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from mimo_engine.demo.bank import VOCABULARY, Bank
from mimo_engine.demo.tones import SAMPLE_RATE
from mimo_engine.errors import ConfigError
from mimo_engine.multimodal.resample import resample
from mimo_engine.multimodal.sound import file_blocks

__all__ = ["CLIPS_FILE", "SPEECH_DIR", "held_out_bank"]

SPEECH_DIR = Path(__file__).parent / "data" / "speech"
CLIPS_FILE = "clips.json"


def held_out_bank(folder: Path = SPEECH_DIR) -> Bank:
    """All of it, decoded. Raises ConfigError for files that are not what clips.json says."""
    listed = json.loads((folder / CLIPS_FILE).read_text(encoding="utf-8"))
    if tuple(listed["words"]) != VOCABULARY:
        raise ConfigError(f"{folder} holds other words than the tasks ask for: {_REMEDY}")
    pieces, ends, start = [], [], 0
    for voice, own_ends in listed["ends"].items():
        samples = _decoded(folder / f"{voice}.opus")
        if len(own_ends) != len(VOCABULARY) or own_ends[-1] != len(samples):
            raise ConfigError(f"{voice}.opus is {len(samples)} samples long: {_REMEDY}")
        pieces.append(samples)
        ends.append(np.array(own_ends, np.int64) + start)
        start += len(samples)
    return Bank(
        words=VOCABULARY,
        voices=tuple(listed["ends"]),
        samples=np.concatenate(pieces),
        ends=np.stack(ends),
    )


_REMEDY = "install the package anew, or run tools/demo_speech.py"


def _decoded(path: Path) -> np.ndarray:
    """int16 [n] at 24 kHz."""
    blocks = list(file_blocks(path))
    samples = np.concatenate([block.samples for block in blocks])
    if blocks[0].rate != SAMPLE_RATE:
        samples = resample(samples, blocks[0].rate, SAMPLE_RATE)
    return np.clip(np.rint(32768 * samples), -32768, 32767).astype(np.int16)
