"""A thought as an opaque text, for clients that show or keep nothing else of it and send it back.

It is encoded and not encrypted: here a thought is no secret from who asked for it.
"""

from __future__ import annotations

import base64

__all__ = ["sealed", "unsealed"]


def sealed(thought: str, mark: str) -> str:
    return mark + base64.b64encode(thought.encode()).decode()


def unsealed(text: str, mark: str) -> str | None:
    """The inverse; None: `text` does not begin with `mark`. ValueError: it was cut or changed."""
    if not text.startswith(mark):
        return None
    return base64.b64decode(text.removeprefix(mark), validate=True).decode()
