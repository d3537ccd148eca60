"""`GuardConfig`: what the server keeps requests from doing to themselves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mimo_engine.errors import ConfigError

__all__ = ["GuardConfig", "LoopAction"]

LoopAction = Literal["report", "stop", "off"]


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    """Guards on answers and on what conversations carry along (docs/server-api.md)."""

    loop_guard: LoopAction = "report"
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
