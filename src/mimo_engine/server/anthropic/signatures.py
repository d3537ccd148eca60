"""Signatures of thoughts. They prove nothing: this server takes back any thought as it is given.

Clients keep a signature unread beside its thought and send both back. Where a client wants no
thought shown (`display: omitted`), the signature holds it, so that the next turn can still have it.
"""

from __future__ import annotations

import base64
import binascii

__all__ = ["UNSIGNED", "hidden_in", "thought_in"]

UNSIGNED = "unsigned"
"""Of a thought that is shown: clients drop one without a signature."""

_PREFIX = "thought:"


def hidden_in(thought: str) -> str:
    """The signature that holds `thought`."""
    return _PREFIX + base64.b64encode(thought.encode()).decode()


def thought_in(signature: str) -> str:
    """The inverse; "" for any other signature. ValueError: it was cut or changed."""
    if not signature.startswith(_PREFIX):
        return ""
    try:
        return base64.b64decode(signature.removeprefix(_PREFIX), validate=True).decode()
    except (binascii.Error, UnicodeError) as error:
        raise ValueError("the signature is not as it was sent") from error
