"""What the operator chooses about speech to text."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mimo_engine.errors import ConfigError

__all__ = ["TRANSCRIPTION_PROMPT", "TranscriptionConfig"]

TRANSCRIPTION_PROMPT = "Please transcribe this audio file"
"""After the clip. As ports of the family's own recogniser, MiMo-V2.5-ASR, ask (audio.md 8); for
MiMo-V2.5 itself no source says what it was taught with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TranscriptionConfig:
    """POST /v1/audio/transcriptions."""

    transcription_prompt: str = TRANSCRIPTION_PROMPT
    """What the model is asked to do with a sound, before what a request says of it."""
    transcription_chunk_s: float = 30.0
    """Longest stretch of sound, in seconds, that is transcribed as one; a longer sound is cut where
    it is quiet. 30 s is what the family's own recogniser is given."""

    def __post_init__(self) -> None:
        if not self.transcription_prompt.strip():
            raise ConfigError("--transcription-prompt must not be empty")
        if not 1 <= self.transcription_chunk_s < math.inf:
            raise ConfigError("--transcription-chunk-s must be at least 1")
