"""A small internet on loopback: names, addresses and one HTTP server that answers for all hosts.

The server speaks raw bytes, so that a test can have it answer in any wrong way.
"""

import asyncio
import gc
import ssl
from contextlib import asynccontextmanager

import httpcore
import pytest

from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.fetch import MediaFetcher
from mimo_engine.multimodal.sources import UrlSource

TLS = ssl.create_default_context()
WHERE = "messages[0].content[1]"
PUBLIC = "93.184.216.34"
PUBLIC_V6 = "2606:2800:220:1:248:1893:25c8:1946"


class FakeInternet(httpcore.AsyncNetworkBackend):
    """Connects to the one server, whatever the address, and remembers who asked for what."""

    def __init__(self):
        self.hosts = {}
        """Addresses of a name: a list, or a list of lists, one for each lookup. Else PUBLIC."""
        self.routes = {}
        """(host, path), or a path for all hosts, to bytes or `async def answer(writer)`."""
        self.unreachable = set()
        self.lookups = []
        self.connections = []
        """(address, port)."""
        self.requests = []
        """Heads as they came."""
        self.num_open = 0
        """Connections that the server has, and has not seen the end of."""
        self.tls_hosts = []
        self._network = httpcore.AnyIOBackend()
        self.port = 0

    def resolve(self, host):
        self.lookups.append(host)
        addresses = self.hosts.get(host, [PUBLIC])
        if addresses and isinstance(addresses[0], list):
            addresses = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        if not addresses:
            raise OSError("no such host")
        return addresses

    async def connect_tcp(self, host, port, timeout=None, local_address=None, socket_options=None):
        self.connections.append((host, port))
        if host in self.unreachable:
            raise httpcore.ConnectError
        stream = await self._network.connect_tcp(
            "127.0.0.1", self.port, timeout, local_address, socket_options
        )
        return _PlainTLS(stream, self)

    async def serve(self, reader, writer):
        self.num_open += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            self.requests.append(head)
            path = head.split(" ")[1]
            host = head.split("\r\nHost: ")[1].split("\r\n")[0]
            answer = self.routes.get((host, path), self.routes.get(path, http(404)))
            if isinstance(answer, bytes):
                writer.write(answer)
                await writer.drain()
            else:
                ended = asyncio.ensure_future(answer(writer))
                gone = asyncio.ensure_future(reader.read())
                await asyncio.wait((ended, gone), return_when=asyncio.FIRST_COMPLETED)
                ended.cancel()
                gone.cancel()
                await asyncio.gather(ended, gone, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
            self.num_open -= 1


class _PlainTLS(httpcore.AsyncNetworkStream):
    """A stream whose handshake only notes the name that a certificate would have to be for."""

    def __init__(self, stream, internet):
        self._stream = stream
        self._internet = internet
        self.read = stream.read
        self.write = stream.write
        self.aclose = stream.aclose
        self.get_extra_info = stream.get_extra_info

    async def start_tls(self, ssl_context, server_hostname=None, timeout=None):
        assert ssl_context.check_hostname
        self._internet.tls_hosts.append(server_hostname)
        return self


@asynccontextmanager
async def fake_internet():
    internet = FakeInternet()
    server = await asyncio.start_server(internet.serve, "127.0.0.1", 0)
    internet.port = server.sockets[0].getsockname()[1]
    try:
        yield internet
    finally:
        server.close()
        while internet.num_open:
            await asyncio.sleep(0.001)


def http(status, body=b"", *headers, length=None):
    """A whole answer."""
    length = len(body) if length is None else length
    lines = [f"HTTP/1.1 {status} Something", f"Content-Length: {length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def moved(location, status=302):
    return http(status, b"", f"Location: {location}")


@asynccontextmanager
async def online(*, max_downloads=16, **limits):
    """A fake internet, and a function that fetches from it."""
    limits = MediaLimits(**({"media_timeout_s": 10.0} | limits))
    async with fake_internet() as internet:
        fetcher = MediaFetcher(
            limits,
            resolver=internet.resolve,
            network=internet,
            ssl_context=TLS,
            max_downloads=max_downloads,
        )
        try:
            yield internet, lambda url: fetcher.fetch(UrlSource(url=url), WHERE)
        finally:
            await fetcher.close()


def run(test, **limits):
    """The result of `await test(internet, fetch)`, which must leave nothing behind."""

    async def main():
        async with online(**limits) as (internet, fetch):
            result = await test(internet, fetch)
            # Whatever happened, its connection is closed and its tasks have ended.
            async with asyncio.timeout(5):
                while internet.num_open or asyncio.all_tasks() != {asyncio.current_task()}:
                    await asyncio.sleep(0.001)
            return result

    result = asyncio.run(main())
    gc.collect()  # an unclosed socket warns now, and a warning is an error
    return result


def refusal(routes, url="http://a.example/", hosts=None, **limits):
    """The message of the error of a fetch, and the internet after it."""

    async def test(internet, fetch):
        internet.hosts |= hosts or {}
        internet.routes |= routes
        with pytest.raises(RequestError) as caught:
            await fetch(url)
        assert caught.value.param == WHERE
        prefix, _, message = str(caught.value).partition(": ")
        assert prefix == WHERE
        return message, internet

    return run(test, **limits)
