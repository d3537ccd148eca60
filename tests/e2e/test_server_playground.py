"""The page at `/` as HTTP sees it; tests/browser has what it does."""

import re
from base64 import b64encode
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from fake_server import FakeServer

PAGE = Path(__file__).parents[2] / "src" / "mimo_engine" / "server" / "playground.html"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with FakeServer(tmp_path_factory.mktemp("model")) as server:
        yield server


@pytest.fixture(scope="module")
def response(server):
    return server.get("/")


def test_the_page_is_the_file_as_it_is(response):
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.content == PAGE.read_bytes()


def test_head_has_the_headers_alone_and_post_is_refused(server, response):
    head = httpx.head(f"{server.url}/", timeout=30)
    assert head.status_code == 200
    assert head.content == b""
    same = ("content-length", "content-type", "content-security-policy")
    assert [head.headers[name] for name in same] == [response.headers[name] for name in same]
    assert server.post("/", {}).status_code == 405


def test_the_policy_lets_run_only_what_is_in_the_page(response):
    policy = dict(
        rule.split(" ", 1) for rule in response.headers["content-security-policy"].split("; ")
    )
    for tag in ("script", "style"):
        (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", response.text, re.DOTALL)
        digest = b64encode(sha256(text.encode()).digest()).decode()
        assert policy.pop(f"{tag}-src") == f"'sha256-{digest}'"
    assert policy == {
        "default-src": "'none'",
        "img-src": "blob: data:",
        "media-src": "blob: data:",
        "connect-src": "'self'",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"


def test_the_page_needs_nothing_from_elsewhere(response):
    # Not even an inline handler or style, which the policy would not let work.
    assert not re.findall(r"https?://|//[a-z]|@import|url\(", response.text)
    assert not re.findall(r"<[^>]* (?:on\w+|style|src|srcset)=", response.text)
    assert set(re.findall(r'<[^>]* href="([^"]*)"', response.text)) == {"data:,"}
