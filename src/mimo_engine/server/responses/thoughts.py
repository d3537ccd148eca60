"""`encrypted_content`: a thought as an opaque text, for clients that keep nothing else of it.

OpenAI's clients ask for it in conversations that the server does not store, and send it back. Here
the thought is no secret, since it stands in `content` too, so it is encoded and not encrypted.
"""

from __future__ import annotations

import base64

from mimo_engine.errors import RequestError

__all__ = ["open_thought", "sealed_thought"]

_MARK = "mimo1."


def sealed_thought(text: str) -> str:
    return _MARK + base64.b64encode(text.encode()).decode()


def open_thought(sealed: str, where: str) -> str:
    """RequestError: not from this server. `where`: the item, as the error names it."""
    try:
        if sealed.startswith(_MARK):
            return base64.b64decode(sealed[len(_MARK) :], validate=True).decode()
    except ValueError:
        pass
    raise RequestError(
        f"{where}.encrypted_content is not of this server: leave the item out, or send its content",
        param=f"{where}.encrypted_content",
    )
