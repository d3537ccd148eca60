"""Who may use the HTTP server, from where, and how much one request may bring."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from mimo_engine.errors import ConfigError

__all__ = ["API_KEY_VARIABLE", "SecurityConfig", "check_api_key"]

API_KEY_VARIABLE = "MIMO_ENGINE_API_KEY"
"""An environment variable with a key: one more for the server, and the one that `eval` sends."""

# What a browser sends as Origin: no path, no trailing slash.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/@?#*A-Z]+")
_HOST_NAME = re.compile(r"[^\s/:@?#\[\]]+")
_API_KEY = re.compile(r"[!-~]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityConfig:
    """Keys, browsers, the size of requests and what is logged of them (docs/server-api.md)."""

    # Left out of the repr, so that no log of a configuration shows a key.
    api_key: tuple[str, ...] = field(default=(), repr=False)
    """A key that requests must carry, as a bearer token or as x-api-key. Other users of this
    machine can read it in the list of processes: prefer api_key_file, or the environment variable
    MIMO_ENGINE_API_KEY. Default: no key is needed."""
    api_key_file: str | None = None
    """A file with one key a line."""
    cors_origin: tuple[str, ...] = ()
    """An origin (https://example.com) whose pages may use the server from a browser; * for all.
    Default: none but the server's own."""
    allowed_host: tuple[str, ...] = ()
    """A name in the Host header to answer to, where there is no key and the server listens on a
    loopback address: beside localhost, for a proxy that passes on its own name."""
    max_body_mib: float = 256.0
    """Largest body of a request, in MiB. Media within it, as base64, take a third more than their
    files."""
    log_requests: bool = False
    """Log every request: method, path, status, times, token counts and the text of its prompt."""

    def __post_init__(self) -> None:
        for key in self.api_key:
            check_api_key(key, "--api-key")
        for origin in self.cors_origin:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise ConfigError(
                    f"--cors-origin {origin!r} is no origin: give scheme and host in lower case, "
                    "and the port if there is one, without a path or a slash at the end, such as "
                    "https://example.com, or * for all"
                )
        for name in self.allowed_host:
            if not _HOST_NAME.fullmatch(name):
                raise ConfigError(
                    f"--allowed-host {name!r} is no host name: leave out scheme, port and path"
                )
        if not 0 < self.max_body_mib < math.inf:
            raise ConfigError(f"--max-body-mib must be positive, not {self.max_body_mib}")


def check_api_key(key: str, source: str) -> None:
    """ConfigError, which does not show it: no header can carry `key`. `source`: where it is from.

    An empty key (an unset variable of a shell, say) must not open a server that was to be closed.
    """
    if not _API_KEY.fullmatch(key):
        raise ConfigError(
            f"{source} has a key that is empty or has other than visible ASCII characters: give "
            "another"
        )
