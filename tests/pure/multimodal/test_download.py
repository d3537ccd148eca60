"""Fetching URLs: which hosts are reached, where redirects may lead, and what is said on the way.

All of it over real sockets on loopback (fake_internet.py); only names and addresses are made up.
"""

import asyncio
import gc

import pytest

from fake_internet import PUBLIC, PUBLIC_V6, TLS, WHERE, fake_internet, http, moved, refusal, run
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.errors import RequestError
from mimo_engine.multimodal.fetch import MediaFetcher
from mimo_engine.multimodal.sources import UrlSource

PRIVATE_URLS = [
    "http://127.0.0.1/",
    "http://127.1/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://2130706433/",
    "http://0x7f000001:8080/",
    "http://0/",
    "http://10.0.0.1/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1%25eth0]/",
    "http://１２７.0.0.1/",
    "http://127。0。0。1/",
    "http://inside.example/",
    "http://both.example/",
]
PRIVATE_HOSTS = {"inside.example": ["10.1.2.3"], "both.example": [PUBLIC, "192.168.0.1"]}


def test_a_body_arrives_whole_and_the_request_says_little():
    async def test(internet, fetch):
        internet.routes["/a/%C3%BC.png?q=%20%2F&x=%C3%A9"] = http(200, bytes(range(256)) * 3000)
        assert await fetch("http://A.example/a/ü.png?q=%20%2F&x=é#part") == bytes(range(256)) * 3000
        assert internet.connections == [(PUBLIC, 80)]
        return internet.requests[0]

    assert run(test).split("\r\n") == [
        "GET /a/%C3%BC.png?q=%20%2F&x=%C3%A9 HTTP/1.1",
        "Host: a.example",
        "User-Agent: mimo-engine",
        "Accept: */*",
        "Accept-Encoding: identity",
        "Connection: close",
        "",
        "",
    ]


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_a_host_that_is_not_public_is_refused_before_a_connection(url):
    message, internet = refusal({}, url, PRIVATE_HOSTS)
    assert message.endswith("is no public host; --allow-private-media-hosts allows others too")
    assert internet.connections == []
    assert "10.1.2.3" not in message
    assert "192.168" not in message


@pytest.mark.parametrize("url", PRIVATE_URLS)
def test_a_redirect_to_a_host_that_is_not_public_is_refused(url):
    message, internet = refusal({("a.example", "/"): moved(url)}, hosts=PRIVATE_HOSTS)
    assert message.startswith("the host that a.example redirects to is no public host")
    assert internet.connections == [(PUBLIC, 80)]


def test_private_hosts_can_be_allowed():
    async def main():
        async with fake_internet() as internet:
            internet.routes["/"] = http(200, b"x")
            limits = MediaLimits(allow_private_media_hosts=True)
            fetcher = MediaFetcher(limits, ssl_context=TLS)
            source = UrlSource(url=f"http://127.0.0.1:{internet.port}/")
            assert await fetcher.fetch(source, WHERE) == b"x"
            await fetcher.close()
            assert f"\r\nHost: 127.0.0.1:{internet.port}\r\n" in internet.requests[0]

    asyncio.run(main())


def test_the_address_that_was_checked_is_the_one_that_is_connected_to():
    async def test(internet, fetch):
        internet.hosts["a.example"] = [[PUBLIC], ["127.0.0.1"]]
        internet.routes["/"] = http(200, b"x")
        assert await fetch("http://a.example/") == b"x"
        assert internet.lookups == ["a.example"]
        assert internet.connections == [(PUBLIC, 80)]

    run(test)


def test_a_name_that_turns_private_between_redirects_is_refused():
    async def test(internet, fetch):
        internet.hosts["a.example"] = [[PUBLIC], ["127.0.0.1"]]
        internet.routes |= {"/": moved("/again"), "/again": http(200, b"secret")}
        with pytest.raises(RequestError, match="no public host"):
            await fetch("http://a.example/")
        assert internet.connections == [(PUBLIC, 80)]

    run(test)


def test_a_second_address_is_tried_when_the_first_does_not_answer():
    async def test(internet, fetch):
        internet.hosts["a.example"] = [PUBLIC_V6, PUBLIC]
        internet.unreachable.add(PUBLIC_V6)
        internet.routes["/"] = http(200, b"x")
        assert await fetch("http://a.example:8080/") == b"x"
        assert internet.connections == [(PUBLIC_V6, 8080), (PUBLIC, 8080)]

    run(test)


def test_a_host_without_an_open_port_cannot_be_reached():
    async def main():
        async with fake_internet() as internet:
            port = internet.port
        limits = MediaLimits(allow_private_media_hosts=True)
        fetcher = MediaFetcher(limits, resolver=lambda host: ["127.0.0.1"], ssl_context=TLS)
        with pytest.raises(RequestError, match=r": a\.example cannot be reached$"):
            await fetcher.fetch(UrlSource(url=f"http://a.example:{port}/"), WHERE)
        await fetcher.close()

    asyncio.run(main())


def test_an_unknown_host_is_refused():
    async def test(internet, fetch):
        internet.hosts["a.example"] = []
        with pytest.raises(RequestError, match=r": a\.example is not known"):
            await fetch("http://a.example/")

    run(test)


def test_names_in_other_scripts_are_looked_up_in_their_ascii_form():
    async def test(internet, fetch):
        internet.routes[("xn--bcher-kva.example:81", "/")] = http(200, b"x")
        assert await fetch("http://Bücher.example:81") == b"x"
        assert internet.lookups == ["xn--bcher-kva.example"]

    run(test)


def test_an_ipv6_address_is_reached_and_named_in_brackets():
    async def test(internet, fetch):
        internet.routes[(f"[{PUBLIC_V6}]", "/")] = http(200, b"x")
        assert await fetch(f"http://[{PUBLIC_V6}]/") == b"x"
        assert internet.connections == [(PUBLIC_V6, 80)]
        assert internet.lookups == []

    run(test)


@pytest.mark.parametrize(
    "url",
    [
        "http://user:secret@a.example/",
        "http://user@a.example/",
        "http://@a.example/",
        "http://a.example\\@127.0.0.1/",
        "http://a.example/a b",
        "http://a.example/\n",
        " http://a.example/",
        "http://a.example:0/",
        "http://a.example:99999/",
        "http://a.example:x/",
        "http:///path",
        "http:a.example",
        "http://",
        "http://[::1",
        "http://[v1.a]/",
        "http://[1:2]/",
        "http://[127.0.0.1]/",
        "http://a..example/",
        "http://%31%32%37.0.0.1/",
        "http://a.example%00.b/",
        "http://a℀b.example/",
        "http://" + "a" * 64 + ".example/",
        "http://a.example/\ud800",
        "http://\ud800.example/",
        "http://a.example/" + "a" * 16_384,
    ],
)
def test_a_url_that_two_readers_could_read_differently_is_refused(url):
    message, internet = refusal({"/": http(200, b"x")}, url)
    assert internet.connections == []
    assert len(message) < 200
    assert "secret" not in message
    message.encode()


def test_redirects_are_followed_relative_to_where_they_stand():
    async def test(internet, fetch):
        internet.routes |= {
            ("a.example", "/dir/first"): moved("second?x=1", 301),
            ("a.example", "/dir/second?x=1"): moved("//b.example/third", 303),
            ("b.example", "/third"): moved("/fourth", 307),
            ("b.example", "/fourth"): moved("http://c.example:81", 308),
            ("c.example:81", "/"): moved("#same-again?"),
        }
        answers = iter([moved("/done"), http(200, b"x")])

        async def answer(writer):
            writer.write(next(answers))
            await writer.drain()

        internet.routes |= {("c.example:81", "/"): answer, ("c.example:81", "/done"): answer}
        assert await fetch("http://a.example/dir/first") == b"x"
        assert internet.lookups == ["a.example"] * 2 + ["b.example"] * 2 + ["c.example"] * 2

    run(test)


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("/", "a.example redirects more than 5 times"),
        ("file:///etc/passwd", "redirects to what is no http or https URL"),
        ("ftp://a.example/", "redirects to what is no http or https URL"),
        ("data:image/png;base64,AAAA", "redirects to what is no http or https URL"),
        ("http://user:secret@b.example/", "redirects to what is no http or https URL"),
        ("http://b.example:0/", "redirects to what is no http or https URL"),
        ("http://[::1/", "redirects to what is no http or https URL"),
        ("", "redirects to nowhere"),
    ],
)
def test_a_redirect_that_leads_nowhere_good_is_refused(location, error):
    message, internet = refusal({"/": moved(location)})
    assert error in message
    assert "secret" not in message
    assert {address for address, _ in internet.connections} == {PUBLIC}
    assert len(internet.requests) == (6 if location == "/" else 1)


def test_tls_is_held_to_the_name_in_the_url_and_never_given_up_again():
    async def test(internet, fetch):
        internet.routes |= {
            "/": http(200, b"x"),
            "/moved": moved("https://b.example/"),
            "/down": moved("http://b.example/"),
        }
        assert await fetch("https://a.example/moved") == b"x"
        assert internet.tls_hosts == ["a.example", "b.example"]
        assert internet.connections == [(PUBLIC, 443)] * 2
        with pytest.raises(RequestError, match=r"a\.example redirects from https to http"):
            await fetch("https://a.example/down")

    run(test)


def test_a_server_that_speaks_no_tls_is_not_trusted():
    async def main():
        async with fake_internet() as internet:
            limits = MediaLimits(allow_private_media_hosts=True)
            fetcher = MediaFetcher(limits, ssl_context=TLS)

            async def answer(reader, writer):
                writer.write(b"220 ready\r\n" * 10)
                await reader.read(1)
                writer.close()

            server = await asyncio.start_server(answer, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(RequestError, match="no TLS connection that can be trusted"):
                await fetcher.fetch(UrlSource(url=f"https://127.0.0.1:{port}/"), WHERE)
            server.close()
            await fetcher.close()
            assert internet.connections == []

    asyncio.run(main())
    gc.collect()


def test_proxies_of_the_environment_are_not_used(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def test(internet, fetch):
        internet.routes["/"] = http(200, b"x")
        assert await fetch("http://a.example/") == b"x"
        assert internet.connections == [(PUBLIC, 80)]

    run(test)


def test_a_cookie_is_not_sent_back():
    async def test(internet, fetch):
        internet.routes |= {
            "/": http(302, b"", "Location: /x", "Set-Cookie: a=b"),
            "/x": http(200, b"x"),
        }
        assert await fetch("http://a.example/") == b"x"
        assert "ookie" not in internet.requests[1]

    run(test)
