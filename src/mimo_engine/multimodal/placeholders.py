"""Where the chat template put the media of a conversation.

Templates of the family show each image, video and clip of sound as a pad token between two marks.
The text of a conversation may hold the same characters, typed by a user or quoted by a tool; those
are text. So before rendering, `hide_pads` makes them unlike the template's own, and `split_prompt`
gives them back in the pieces of text between the media.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from mimo_engine.errors import RequestError
from mimo_engine.multimodal.sources import MediaKind

__all__ = ["hide_pads", "split_prompt"]

_TRIPLE = re.compile(
    r"<\|vision_start\|><\|(image|video)_pad\|><\|vision_end\|>"
    r"|<\|mimo_audio_start\|><\|(audio)_pad\|><\|mimo_audio_end\|>"
)
# The hidden form has a character from a private-use area, so that no text has it by chance.
_PAD = re.compile(r"<(?=\|(?:image|video|audio)_pad\|>)")
_HIDDEN_PAD = re.compile(r"<\ue000(?=\|(?:image|video|audio)_pad\|>)")


def hide_pads(value: Any) -> Any:
    """A JSON value with every pad token in its strings made unlike the template's own."""
    if isinstance(value, str):
        return _PAD.sub("<\ue000", value)
    if isinstance(value, Mapping):
        return {key: hide_pads(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [hide_pads(item) for item in value]
    return value


def split_prompt(text: str, kinds: Sequence[MediaKind]) -> list[str]:
    """The rendered `text` before, between and after its media, whose `kinds` the messages tell.

    RequestError when the template does not show each of them, in order.
    """
    texts, found, end = [], [], 0
    for match in _TRIPLE.finditer(text):
        texts.append(text[end : match.start()])
        found.append(match.group(1) or match.group(2))
        end = match.end()
    texts.append(text[end:])
    if found != list(kinds):
        raise RequestError(
            f"the chat template shows {_listed(found)} where the messages have {_listed(kinds)}",
            param="messages",
        )
    return [_HIDDEN_PAD.sub("<", piece) for piece in texts]


def _listed(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "no media"
