"""Fetching URLs: servers that are slow, endless or wrong, many downloads at once, and cancelling.

All of it over real sockets on loopback (fake_internet.py).
"""

import asyncio

import pytest

from fake_internet import PUBLIC, TLS, WHERE, http, moved, refusal, run
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.fetch import MediaFetcher
from mimo_engine.multimodal.sources import UrlSource


@pytest.mark.parametrize("status", [201, 204, 206, 304, 400, 401, 404, 500, 503])
def test_any_status_but_200_is_refused(status):
    message, _ = refusal({"/": http(status)})
    assert message == f"a.example answered with status {status}"


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 200_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: a\r\n" * 100_000 + b"\r\n",
    ],
)
def test_an_answer_that_is_not_http_or_ends_too_early_is_refused(answer):
    message, _ = refusal({"/": answer})
    assert message == "a.example did not answer as an HTTP server does"


def test_an_empty_body_is_refused():
    assert refusal({"/": http(200)})[0] == "it is empty"


@pytest.mark.parametrize("encoding", ["gzip", "br", "identity, gzip"])
def test_a_compressed_body_is_refused(encoding):
    message, _ = refusal({"/": http(200, b"x", f"Content-Encoding: {encoding}")})
    assert message == f"a.example sends it with content-encoding {encoding!r}"


def test_a_body_of_the_largest_size_passes_and_one_byte_more_does_not():
    async def test(internet, fetch):
        internet.routes |= {"/fits": http(200, bytes(1024)), "/over": http(200, bytes(1025))}
        assert await fetch("http://a.example/fits") == bytes(1024)
        with pytest.raises(RequestError, match=r"more than 0\.000976562 MiB \(--max-media-mib\)"):
            await fetch("http://a.example/over")

    run(test, max_media_mib=1 / 1024)


@pytest.mark.parametrize("length", [2 * 2**20, 10**19])
def test_a_length_that_is_too_large_is_refused_before_any_of_the_body(length):
    async def answer(writer):
        writer.write(http(200, length=length))
        await asyncio.Event().wait()

    message, _ = refusal({"/": answer}, max_media_mib=1)
    assert message == "a.example sends more than 1 MiB (--max-media-mib)"


@pytest.mark.parametrize(
    ("head", "part"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", bytes(65536)),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"10000\r\n%b\r\n" % bytes(65536),
        ),
    ],
)
def test_a_body_without_a_length_that_never_ends_is_cut_at_the_limit(head, part):
    sent = 0

    async def answer(writer):
        nonlocal sent
        writer.write(head)
        while True:
            writer.write(part)
            await writer.drain()
            sent += 1

    message, _ = refusal({"/": answer}, max_media_mib=1)
    assert message == "a.example sends more than 1 MiB (--max-media-mib)"
    assert sent < 1000


def drip(piece):
    async def answer(writer):
        writer.write(http(200, length=10_000) if piece == b"x" else b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.005)

    return answer


async def silence(writer):
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    "answer",
    [silence, drip(b"x"), drip(b"X: y\r\n"), drip(b"")],
    ids=["none", "body", "head", "mid"],
)
def test_a_slow_server_is_given_up_when_the_time_for_the_whole_is_over(answer):
    message, _ = refusal({"/": answer}, media_timeout_s=0.1)
    assert message == "a.example took longer than 0.1 s (--media-timeout-s)"


def test_the_time_limit_is_for_all_redirects_together():
    async def slow(writer):
        await asyncio.sleep(0.05)
        writer.write(moved("/"))
        await writer.drain()

    message, _ = refusal({"/": slow}, media_timeout_s=0.12)
    assert "took longer than 0.12 s" in message


def test_a_slow_fetch_does_not_hold_up_another_one():
    async def test(internet, fetch):
        internet.routes |= {"/slow": silence, "/fast": http(200, b"x")}
        slow = asyncio.create_task(fetch("http://a.example/slow"))
        while not internet.requests:
            await asyncio.sleep(0.001)
        assert await fetch("http://a.example/fast") == b"x"
        assert not slow.done()
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)

    run(test)


def test_at_most_so_many_downloads_run_at_once():
    async def test(internet, fetch):
        most = 0

        async def answer(writer):
            nonlocal most
            most = max(most, internet.num_open)
            await asyncio.sleep(0.02)
            writer.write(http(200, b"x"))
            await writer.drain()

        internet.routes["/"] = answer
        assert await asyncio.gather(*(fetch("http://a.example/") for _ in range(6))) == [b"x"] * 6
        return most

    assert run(test, max_downloads=2) <= 2


def test_the_time_of_a_download_that_waits_for_others_has_not_begun():
    async def test(internet, fetch):
        internet.routes |= {"/slow": silence, "/fast": http(200, b"x")}
        slow, fast = await asyncio.gather(
            fetch("http://a.example/slow"), fetch("http://a.example/fast"), return_exceptions=True
        )
        assert isinstance(slow, RequestError)
        assert fast == b"x"

    run(test, max_downloads=1, media_timeout_s=0.5)


def test_a_body_of_tiny_chunks_leaves_time_for_others():
    async def test(internet, fetch):
        chunks = b"1\r\nx\r\n" * 3000 + b"0\r\n\r\n"
        internet.routes["/"] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks
        download = asyncio.create_task(fetch("http://a.example/"))
        num_turns = 0
        while not download.done():
            await asyncio.sleep(0)
            num_turns += 1
        assert await download == b"x" * 3000
        return num_turns

    assert run(test) >= 3000


@pytest.mark.parametrize("path", ["/silent", "/body", "/endless"])
def test_a_cancelled_fetch_leaves_no_connection_and_no_task(path):
    async def test(internet, fetch):
        async def endless(writer):
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                writer.write(bytes(1000))
                await writer.drain()
                await asyncio.sleep(0.001)

        internet.routes |= {"/silent": silence, "/body": drip(b"x"), "/endless": endless}
        task = asyncio.create_task(fetch(f"http://a.example{path}"))
        while not internet.requests:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(test)


def test_a_fetch_can_be_cancelled_at_any_of_its_steps():
    async def test(internet, fetch):
        internet.routes |= {"/": moved("https://b.example/x"), "/x": http(200, bytes(200_000))}
        for num_steps in range(150):
            task = asyncio.create_task(fetch("http://a.example/"))
            for _ in range(num_steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            assert task.cancelled() or len(task.result()) == 200_000

    run(test)


def test_a_lookup_that_hangs_is_given_up_too():
    async def main():
        release = asyncio.Event()
        loop = asyncio.get_running_loop()

        def resolver(host):
            asyncio.run_coroutine_threadsafe(release.wait(), loop).result()
            return [PUBLIC]

        limits = MediaLimits(media_timeout_s=0.05)
        fetcher = MediaFetcher(limits, resolver=resolver, ssl_context=TLS)
        with pytest.raises(RequestError, match=r"a\.example took longer"):
            await fetcher.fetch(UrlSource(url="http://a.example/"), WHERE)
        release.set()
        await fetcher.close()

    asyncio.run(main())
