"""Keys, origins and hosts, without a network."""

import asyncio

import pytest

from mimo_engine.config.security import SecurityConfig
from mimo_engine.config.server import ServerConfig
from mimo_engine.errors import ConfigError
from mimo_engine.server.security import (
    OPEN_PATHS,
    BrowserGuard,
    KeyCheck,
    is_loopback,
    read_api_keys,
)


def status_of(make, path="/v1/models", kind="http", **headers):
    """What the layer that `make` puts around an application answers; 200 is the application's."""
    sent = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    pairs = [(name.replace("_", "-").encode(), value) for name, value in headers.items()]
    scope = {"type": kind, "path": path, "method": "GET", "headers": pairs}
    asyncio.run(make(app)(scope, None, send))
    return sent[0].get("status", sent[0].get("code"))


def keyed(app):
    return KeyCheck(app, ("first-key", "second-key"))


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": b"Bearer first-key"}, 200),
        ({"authorization": b"bearer  second-key "}, 200),
        ({"x_api_key": b"second-key"}, 200),
        ({"x_api_key": b"wrong", "authorization": b"Bearer first-key"}, 200),
        ({"authorization": b"first-key"}, 401),
        ({"authorization": b"Basic first-key"}, 401),
        ({"authorization": b"Bearer"}, 401),
        ({"authorization": b"Bearer first-key,second-key"}, 401),
        ({"x_api_key": b"first-ke"}, 401),
        ({"x_api_key": b"first-key2"}, 401),
        ({"x_api_key": b"FIRST-KEY"}, 401),
        ({"x_api_key": b"\xff\x00"}, 401),
        ({"x_api_key": b""}, 401),
    ],
)
def test_one_of_the_keys_is_needed(headers, status):
    assert status_of(keyed, **headers) == status


def test_only_the_open_paths_are_open_and_only_as_they_are_written():
    assert sorted(OPEN_PATHS) == ["/", "/health", "/metrics", "/ping"]
    assert {status_of(keyed, path) for path in OPEN_PATHS} == {200}
    for path in ("/health/", "//", "/metrics/../v1/models", "/HEALTH", "", "/openapi.json"):
        assert status_of(keyed, path) == 401


def test_a_websocket_needs_a_key_too():
    assert status_of(keyed, "/v1/realtime", "websocket") == 1008
    assert status_of(keyed, "/v1/realtime", "websocket", x_api_key=b"first-key") == 200


def guarded(*origins, hosts=()):
    return lambda app: BrowserGuard(app, origins=origins, hosts=hosts)


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1:8000", "localhost", "LOCALHOST:80", "api.localhost.", "[::1]:8000", "[::1]"),
        *("10.1.2.3", "proxy.example.com:443"),
    ],
)
def test_addresses_localhost_and_allowed_names_are_answered_to(host):
    make = guarded(hosts=("Proxy.example.com",))
    assert status_of(make, host=host.encode()) == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", ""]
)
def test_a_name_that_leads_here_by_rebinding_is_refused(host):
    assert status_of(guarded(), host=host.encode()) == 403
    assert status_of(guarded(hosts=None), host=host.encode()) == 200


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (b"http://127.0.0.1:8000", 200),
        (b"https://127.0.0.1:8000", 200),
        (b"https://friend.example", 200),
        (b"http://friend.example", 403),
        (b"https://friend.example.evil.example", 403),
        (b"http://127.0.0.1:9000", 403),
        (b"null", 403),
        (b"", 403),
    ],
)
def test_pages_of_other_sites_are_refused(origin, status):
    make = guarded("https://friend.example")
    assert status_of(make, host=b"127.0.0.1:8000", origin=origin) == status
    assert status_of(guarded("*"), host=b"127.0.0.1:8000", origin=origin) == 200


def test_keys_come_from_flags_and_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text("from-file\n\n  spaced  \r\n")
    config = SecurityConfig(api_key=("from-flag",), api_key_file=str(file))
    assert read_api_keys(config) == ("from-flag", "from-file", "spaced")
    assert read_api_keys(SecurityConfig()) == ()


def test_a_key_comes_from_the_environment_too(monkeypatch):
    monkeypatch.setenv("MIMO_ENGINE_API_KEY", "from-environment")
    assert read_api_keys(SecurityConfig()) == ("from-environment",)
    assert read_api_keys(SecurityConfig(api_key=("flag",))) == ("flag", "from-environment")
    # A variable that was to close the server does not open it.
    monkeypatch.setenv("MIMO_ENGINE_API_KEY", "")
    with pytest.raises(ConfigError, match="MIMO_ENGINE_API_KEY has a key that is empty"):
        read_api_keys(SecurityConfig())


@pytest.mark.parametrize(
    "content", [b"", b"\n \n", b"two words\n", b"\xff\n", b"g\xc3\xa9heim\n", None]
)
def test_a_file_without_usable_keys_does_not_open_the_server(tmp_path, content):
    file = tmp_path / "keys"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match="--api-key-file") as caught:
        read_api_keys(SecurityConfig(api_key_file=str(file)))
    assert "two" not in str(caught.value)


def test_no_key_is_shown_by_a_configuration_or_its_errors():
    config = ServerConfig(security=SecurityConfig(api_key=("secret-key",)))
    assert "secret" not in repr(config)
    for key in ("secret\nkey", "", "secret key"):
        with pytest.raises(ConfigError, match="--api-key has a key") as caught:
            SecurityConfig(api_key=(key,))
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    "origin",
    ["example.com", "https://example.com/", "https://Example.com", "https://*.example.com", "null"],
)
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ConfigError, match="--cors-origin"):
        SecurityConfig(cors_origin=(origin,))


@pytest.mark.parametrize("name", ["http://a", "a:80", "a/b", ""])
def test_what_is_no_host_name_is_refused(name):
    with pytest.raises(ConfigError, match="--allowed-host"):
        SecurityConfig(allowed_host=(name,))


@pytest.mark.parametrize("size", [0, -1, float("inf"), float("nan")])
def test_a_body_has_a_size(size):
    with pytest.raises(ConfigError, match="--max-body-mib"):
        SecurityConfig(max_body_mib=size)


def test_loopback_is_what_only_this_machine_reaches():
    assert all(map(is_loopback, ("127.0.0.1", "127.1.2.3", "::1", "localhost")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "example.com")))
