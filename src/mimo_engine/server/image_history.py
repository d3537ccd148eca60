"""Conversations send every image again with each turn; this keeps the newest of them.

It is done to the messages as they came, before anything reads media: what is removed is not
fetched, decoded or checked, and does not count as media.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["with_newest_images"]

REMOVED = "[image removed]"

_IMAGE_TYPES = ("image", "image_url")


def with_newest_images(
    messages: Sequence[Mapping[str, Any]], num_kept: int | None
) -> tuple[Sequence[Mapping[str, Any]], int]:
    """`messages` with all but the last `num_kept` images (None: all are kept) as a text part that
    says REMOVED, and how many were removed. Videos and sound are left as they are. What is no
    message or no part, too: it is refused elsewhere."""
    if num_kept is None:
        return messages, 0
    places = [
        (i, j)
        for i, message in enumerate(messages)
        if isinstance(message.get("content"), list)
        for j, part in enumerate(message["content"])
        if isinstance(part, Mapping) and part.get("type") in _IMAGE_TYPES
    ]
    removed = set(places[: max(0, len(places) - num_kept)])
    touched = {i for i, _ in removed}
    shown = [
        {**message, "content": _marked(message["content"], i, removed)} if i in touched else message
        for i, message in enumerate(messages)
    ]
    return shown, len(removed)


def _marked(parts: Sequence[Any], i: int, removed: set[tuple[int, int]]) -> list[Any]:
    return [
        {"type": "text", "text": REMOVED} if (i, j) in removed else part
        for j, part in enumerate(parts)
    ]
