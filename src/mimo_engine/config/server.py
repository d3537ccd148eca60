"""`ServerConfig`: every choice of the person who runs the server, beside those of the engine.

Like config/engine.py, this tree is the command line: a field here is a flag there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.config.security import SecurityConfig
from mimo_engine.errors import ConfigError

__all__ = [
    "TRANSCRIPTION_PROMPT",
    "GuardConfig",
    "ResponsesConfig",
    "ServerConfig",
    "ThinkingConfig",
    "TranscriptionConfig",
]

TRANSCRIPTION_PROMPT = "Please transcribe this audio file"
"""After the clip. As ports of the family's own recogniser, MiMo-V2.5-ASR, ask (audio.md 8); for
MiMo-V2.5 itself no source says what it was taught with."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThinkingConfig:
    """What chat requests may do while they think."""

    strict_thinking: bool = False
    """A thought ends with </think> only: until then no tool call and no end of the turn is
    sampled. Requests with a grammar always have this."""
    thinking_token_budget: int | None = None
    """Tokens of a thought before </think> is forced, for requests that give none. Default: no
    limit."""
    tool_call_in_thinking: Literal["rescue", "leave"] = "rescue"
    """A tool call inside a thought ends it and is a call (rescue), or is text of it (leave)."""

    def __post_init__(self) -> None:
        if self.thinking_token_budget is not None and self.thinking_token_budget < 1:
            raise ConfigError("--thinking-token-budget must be at least 1")


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """Guards on answers and on what conversations carry along (docs/server-api.md)."""

    loop_guard: Literal["report", "stop", "off"] = "report"
    """What is done about an answer that repeats itself without end: log and count it (report), end
    it too (stop), or nothing."""
    max_tool_calls: int | None = None
    """An answer ends with this many tool calls; a request may ask for fewer. Default: no limit."""
    keep_images: int | None = None
    """Newest images of a conversation that the model sees; older ones become the text [image
    removed], and are not fetched. Default: all."""

    def __post_init__(self) -> None:
        if self.max_tool_calls is not None and self.max_tool_calls < 1:
            raise ConfigError("--max-tool-calls must be at least 1; leave it out for no limit")
        if self.keep_images is not None and self.keep_images < 0:
            raise ConfigError("--keep-images must be 0 or more; leave it out to keep all")


@dataclass(frozen=True, kw_only=True, slots=True)
class ResponsesConfig:
    """What is kept of /v1/responses, in memory, the least recently used out first."""

    response_store: int = 1000
    """Responses that can be continued by previous_response_id and asked for by id. 0: none."""
    response_store_mib: int = 256
    """JSON of all of them, media as they were sent; a conversation that is larger is not kept."""

    def __post_init__(self) -> None:
        if self.response_store < 0:
            raise ConfigError("--response-store must be at least 0")
        if self.response_store_mib < 1:
            raise ConfigError(
                "--response-store-mib must be at least 1; --response-store 0 keeps nothing"
            )


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


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """The HTTP front."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """TCP port; 0 for any that is free."""
    served_model_name: str | None = None
    """Name in the API. Default: the name of the checkpoint's directory."""
    chat_template: str | None = None
    """A Jinja file that replaces the checkpoint's chat template."""
    thinking: ThinkingConfig = field(default_factory=ThinkingConfig)
    guards: GuardConfig = field(default_factory=GuardConfig)
    responses: ResponsesConfig = field(default_factory=ResponsesConfig)
    transcription: TranscriptionConfig = field(default_factory=TranscriptionConfig)
    media: MediaLimits = field(default_factory=MediaLimits)
    security: SecurityConfig = field(default_factory=SecurityConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.port < 2**16:
            raise ConfigError(f"--port must be 0 to 65535, not {self.port}")
