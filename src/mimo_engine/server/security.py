"""Who may use the server: API keys, and pages in somebody's browser.

Plain ASGI, so that streams and disconnects pass through untouched. With keys, a request without one
of them gets nothing but OPEN_PATHS. Without keys a browser is the danger: any page that its user
opens can send requests to this machine. `BrowserGuard` refuses those that a browser marks as coming
from elsewhere, and names by which a page could make this server look like its own (DNS rebinding).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from mimo_engine.config.security import API_KEY_VARIABLE, SecurityConfig, check_api_key
from mimo_engine.errors import ConfigError
from mimo_engine.server.errors import RefusedError, error_response

__all__ = [
    "OPEN_PATHS",
    "BrowserGuard",
    "KeyCheck",
    "is_loopback",
    "read_api_keys",
]

OPEN_PATHS = frozenset({"/", "/health", "/metrics", "/ping"})
"""What probes, scrapers and a browser get without a key, as from vLLM and SGLang: nothing in there
is of a request."""


def read_api_keys(config: SecurityConfig) -> tuple[str, ...]:
    """The keys of both flags and the environment. ConfigError: a source without a usable key."""
    keys = list(config.api_key)
    if config.api_key_file is not None:
        keys += _keys_in_file(config.api_key_file)
    variable = os.environ.get(API_KEY_VARIABLE)
    if variable is not None:
        check_api_key(variable, API_KEY_VARIABLE)
        keys.append(variable)
    return tuple(keys)


def _keys_in_file(file: str) -> list[str]:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        # A UnicodeDecodeError shows bytes of the file.
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"--api-key-file cannot be read: {reason}") from None
    keys = [line.strip() for line in text.splitlines() if line.strip()]
    if not keys:
        raise ConfigError("--api-key-file has no key: write one a line, or leave the flag out")
    for key in keys:
        check_api_key(key, "--api-key-file")
    return keys


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens on `host`."""
    address = _address(host)
    return host == "localhost" if address is None else address.is_loopback


class KeyCheck:
    """401 for requests without one of `keys`, but for OPEN_PATHS."""

    def __init__(self, app: ASGIApp, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key.encode("ascii")) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_open = scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS
        if is_open or self._knows_one_of(_given_keys(scope)):
            await self._app(scope, receive, send)
            return
        error = RefusedError(
            401,
            "a valid API key is needed, as authorization: Bearer KEY or as x-api-key: KEY",
            "invalid_api_key",
            {"www-authenticate": "Bearer"},
        )
        await _refuse(error, scope, receive, send)

    def _knows_one_of(self, given: Iterable[bytes]) -> bool:
        # Digests are of one length, and every pair is compared to the end: the time says nothing
        # about the keys.
        is_known = False
        for key in given:
            digest = _digest(key)
            for known in self._digests:
                is_known |= hmac.compare_digest(digest, known)
        return is_known


class BrowserGuard:
    """403 for what a browser sends on behalf of a page from elsewhere. For servers without keys.

    origins: whose pages may. hosts: the names in the Host header to answer to, beside localhost and
    addresses; None: all of them.
    """

    def __init__(
        self, app: ASGIApp, *, origins: Sequence[str], hosts: Sequence[str] | None
    ) -> None:
        self._app = app
        self._origins = frozenset(origins)
        self._hosts = None if hosts is None else frozenset(name.lower() for name in hosts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = None if scope["type"] == "lifespan" else self._objection(scope)
        if error is None:
            await self._app(scope, receive, send)
        else:
            await _refuse(error, scope, receive, send)

    def _objection(self, scope: Scope) -> RefusedError | None:
        hosts = [value.decode("latin-1").lower() for value in _headers(scope, b"host")]
        if not all(map(self._answers_to, hosts)):
            return RefusedError(
                403,
                "this server does not answer to the name in the Host header; start it with "
                "--allowed-host and the name, or with --api-key",
                "host_not_allowed",
            )
        for value in _headers(scope, b"origin"):
            origin = value.decode("latin-1").lower()
            # The scheme is left out: a proxy may have taken TLS off.
            is_own = origin.partition("://")[2] in hosts
            if not is_own and not self._origins & {origin, "*"}:
                return RefusedError(
                    403,
                    "this server takes no requests from pages of other sites; start it with "
                    "--cors-origin and the site's origin to allow them",
                    "origin_not_allowed",
                )
        return None

    def _answers_to(self, host: str) -> bool:
        """A page cannot make an address its own name, so every address will do."""
        if self._hosts is None:
            return True
        name = _without_port(host).removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return name in self._hosts or _address(name.strip("[]")) is not None


async def _refuse(error: RefusedError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    await error_response(error, scope)(scope, receive, send)


def _given_keys(scope: Scope) -> list[bytes]:
    given = _headers(scope, b"x-api-key")
    for value in _headers(scope, b"authorization"):
        scheme, _, key = value.partition(b" ")
        if scheme.lower() == b"bearer":
            given.append(key.strip())
    return given


def _headers(scope: Scope, name: bytes) -> list[bytes]:
    return [value for key, value in scope["headers"] if key == name]


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() and not host.endswith("]") else host


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
