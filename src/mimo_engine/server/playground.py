"""GET /: a page to talk to the model with, for people. It needs nothing but this server.

The page is one file whose style and script are allowed by their hashes, so that nothing else can
run in it, whatever a model or a user writes; it also reaches no other host.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from importlib import resources

from fastapi import APIRouter, Response

__all__ = ["playground_router"]


def playground_router() -> APIRouter:
    router = APIRouter()
    page = resources.files("mimo_engine.server").joinpath("playground.html").read_bytes()
    headers = {
        "content-security-policy": _policy(page),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
        "cache-control": "no-cache",
    }

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def playground() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    return router


def _policy(page: bytes) -> str:
    """What the page may do. Trusted types: a string never becomes markup or code."""
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(page, b'script')}",
            f"style-src {_hash(page, b'style')}",
            "img-src blob: data:",
            "media-src blob: data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    )


def _hash(page: bytes, tag: bytes) -> str:
    (text,) = re.findall(rb"<%b>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
    return f"'sha256-{b64encode(sha256(text).digest()).decode()}'"
