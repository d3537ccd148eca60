"""GET of one media URL that a stranger chose.

What must hold: no byte goes to an address that was not checked, whatever names, redirects and
resolvers say; no server can make a download longer or larger than the limits; when a download has
ended, in whatever way, its sockets are closed.

httpcore speaks HTTP; it opens every connection through a network backend, which is the one here: it
looks the host up, checks all of its addresses, and connects to one of those. Nothing is looked up a
second time. Proxies of the environment, cookies and compression are not used, and a connection
serves one exchange.
"""

from __future__ import annotations

import asyncio
import re
import ssl
import string
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass
from typing import cast
from urllib.parse import quote, urljoin, urlsplit

import httpcore

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.addresses import is_public, literal_address
from mimo_engine.multimodal.sources import shown

__all__ = ["Downloader", "Resolver"]

Resolver = Callable[[str], Sequence[str]]
"""From a host name to its numeric addresses, best first; OSError when there are none. It may block:
it runs on a thread."""

MAX_REDIRECTS = 5
MAX_URL_CHARS = 16_384
CONNECT_TIMEOUT_S = 10.0
"""For one address of a host, so that a second one has its turn. The whole has its own limit."""

_USER_AGENT = "mimo-engine"
_REDIRECTS = (301, 302, 303, 307, 308)
_NOT_IN_URLS = re.compile(r"[\x00-\x20\x7f\\]")
_HOST = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*\.?")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Target:
    """A URL taken apart, and nothing left in it that two readers could read differently."""

    text: str
    url: httpcore.URL
    host: str


class Downloader:
    """Downloads one URL at a time, or many side by side. Lives in one event loop."""

    def __init__(
        self,
        limits: MediaLimits,
        *,
        resolver: Resolver,
        network: httpcore.AsyncNetworkBackend,
        ssl_context: ssl.SSLContext,
        num_threads: int,
    ) -> None:
        """num_threads: host names that are looked up at once."""
        self._limits = limits
        self._max_bytes = int(limits.max_media_mib * 2**20)
        self._resolver = resolver
        self._network = network
        self._ssl_context = ssl_context
        # A lookup cannot be cancelled: slow ones must not hold the threads of others.
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix="media-lookup")

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def get(self, url: str) -> bytes:
        """The body at `url`. RequestError: there is none that these limits allow."""
        target = _parse(url)
        timeout_s = self._limits.media_timeout_s
        try:
            async with asyncio.timeout(timeout_s):
                return await self._follow(target)
        except TimeoutError:
            raise RequestError(
                f"{target.host} took longer than {timeout_s:g} s (--media-timeout-s)"
            ) from None

    async def _follow(self, target: _Target) -> bytes:
        # Errors name no host but the first, the one that the request has named.
        first = who = target.host
        for _ in range(MAX_REDIRECTS + 1):
            answer = await self._exchange(target, who)
            if isinstance(answer, bytes):
                return answer
            target = _redirected(target, answer, who)
            who = f"the host that {first} redirects to"
        raise RequestError(f"{first} redirects more than {MAX_REDIRECTS} times")

    async def _exchange(self, target: _Target, who: str) -> bytes | str:
        """The body, or as a string where a redirect leads."""
        network = _CheckedNetwork(
            self._network,
            self._lookup,
            who=who,
            allows_private=self._limits.allow_private_media_hosts,
        )
        connection = httpcore.AsyncHTTPConnection(
            origin=target.url.origin, ssl_context=self._ssl_context, network_backend=network
        )
        try:
            response = await connection.handle_async_request(_request(target))
            if response.status in _REDIRECTS:
                return _header(response, b"location")
            if response.status != 200:
                raise RequestError(f"{who} answered with status {response.status}")
            return await self._body(response, who)
        except httpcore.ConnectError as error:
            # The network below reports its own failures, so this one came after the connection.
            raise RequestError(f"{who} has no TLS connection that can be trusted") from error
        except (
            httpcore.NetworkError,
            httpcore.ProtocolError,
            httpcore.TimeoutException,
            OSError,
        ) as error:
            raise RequestError(f"{who} did not answer as an HTTP server does") from error
        finally:
            await network.aclose()

    async def _lookup(self, host: str) -> Sequence[str]:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._resolver, host)

    async def _body(self, response: httpcore.Response, who: str) -> bytes:
        encoding = _header(response, b"content-encoding").strip().lower()
        if encoding not in ("", "identity"):
            raise RequestError(f"{who} sends it with content-encoding {shown(encoding)}")
        length = _header(response, b"content-length")
        too_large = RequestError(
            f"{who} sends more than {self._limits.max_media_mib:g} MiB (--max-media-mib)"
        )
        if length.isdecimal() and int(length[:20]) > self._max_bytes:
            raise too_large
        body = bytearray()
        stream = cast("AsyncGenerator[bytes]", response.aiter_stream())
        async with aclosing(stream) as parts:
            async for part in parts:
                if len(body) + len(part) > self._max_bytes:
                    raise too_large
                body += part
                # One read may hold thousands of tiny chunks, and nothing waits between them.
                await asyncio.sleep(0)
        return bytes(body)


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """The network of one exchange: it connects to checked addresses, and closes what it opened."""

    def __init__(
        self,
        network: httpcore.AsyncNetworkBackend,
        lookup: Callable[[str], Awaitable[Sequence[str]]],
        *,
        who: str,
        allows_private: bool,
    ) -> None:
        self._network = network
        self._lookup = lookup
        self._who = who
        self._allows_private = allows_private
        self._streams: list[httpcore.AsyncNetworkStream] = []

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        for address in await self._addresses(host):
            try:
                stream = await self._network.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
            self._streams.append(stream)
            return stream
        raise RequestError(f"{self._who} cannot be reached")

    async def _addresses(self, host: str) -> Sequence[str]:
        literal = literal_address(host)
        try:
            addresses = [literal] if literal else await self._lookup(host)
        except OSError as error:
            raise RequestError(f"{self._who} is not known: it has no address") from error
        if not self._allows_private and not all(map(is_public, addresses)):
            raise RequestError(
                f"{self._who} is no public host; --allow-private-media-hosts allows others too"
            )
        return addresses

    async def aclose(self) -> None:
        for stream in self._streams:
            await stream.aclose()


def _parse(text: str) -> _Target:
    """RequestError: no http(s) URL, or one whose parts could be mistaken."""
    if len(text) > MAX_URL_CHARS:
        raise RequestError(f"a URL of more than {MAX_URL_CHARS} characters is not fetched")
    if _NOT_IN_URLS.search(text):
        raise RequestError(
            f"{shown(text)} holds a space, backslash or control character: percent-encode it"
        )
    try:
        parts = urlsplit(text)
        port = parts.port
        host = _ascii_host(parts.hostname or "", is_bracketed="[" in parts.netloc)
        target = quote((parts.path or "/") + (f"?{parts.query}" if parts.query else ""), _KEPT)
    except ValueError as error:
        raise RequestError(f"{shown(text)} is not a URL") from error
    if parts.scheme not in ("http", "https"):
        raise RequestError(f"{shown(parts.scheme)} URLs are not fetched: only http and https")
    if "@" in parts.netloc:
        raise RequestError("a URL with a user name or password is not fetched")
    if port == 0:
        raise RequestError("port 0 is not a port")
    url = httpcore.URL(scheme=parts.scheme, host=host, port=port, target=target)
    return _Target(text=text, url=url, host=host)


# What stays as it is in the path and the query of a URL: all of ASCII that got this far.
_KEPT = string.punctuation


def _ascii_host(host: str, *, is_bracketed: bool) -> str:
    """A host as it goes to the resolver. ValueError: it is none.

    is_bracketed: it must be an IPv6 address, and nothing else may be one.
    """
    if is_bracketed or ":" in host:
        address = literal_address(host)
        if address is None or ":" not in address or not is_bracketed:
            raise ValueError(host)
        return address
    name = host.encode("idna").decode("ascii").lower()
    if not _HOST.fullmatch(name):
        raise ValueError(host)
    return name


def _redirected(target: _Target, location: str, who: str) -> _Target:
    if not location:
        raise RequestError(f"{who} redirects to nowhere")
    try:
        moved = _parse(urljoin(target.text, location))
    except ValueError as error:
        raise RequestError(f"{who} redirects to what is no http or https URL") from error
    if target.url.scheme == b"https" and moved.url.scheme == b"http":
        raise RequestError(f"{who} redirects from https to http")
    return moved


def _request(target: _Target) -> httpcore.Request:
    host = f"[{target.host}]" if ":" in target.host else target.host
    if target.url.port is not None:
        host += f":{target.url.port}"
    headers = [
        ("Host", host),
        ("User-Agent", _USER_AGENT),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),
        ("Connection", "close"),
    ]
    extensions = {"timeout": {"connect": CONNECT_TIMEOUT_S}}
    return httpcore.Request("GET", target.url, headers=headers, extensions=extensions)


def _header(response: httpcore.Response, name: bytes) -> str:
    """The value of a header, or an empty string; several of one name are joined, as HTTP says."""
    values = [value for key, value in response.headers if key.lower() == name]
    return b", ".join(values).decode("utf-8", errors="replace")
