"""Who is let in, how much one request may bring, and what is said of it, over a fake engine."""

import json
import logging
import sys
import threading
import time

import httpx
import pytest
from fake_server import MODEL, FakeServer

from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.config.security import SecurityConfig
from mimo_engine.server.security import OPEN_PATHS

KEYED = SecurityConfig(
    api_key=("key-one", "key-two"),
    cors_origin=("https://friend.example",),
    max_body_mib=0.25,
    log_requests=True,
)
KEY = {"x-api-key": "key-two"}
JSON, FORM = "application/json", "multipart/form-data; boundary=b"
CHAT = {"messages": [{"role": "user", "content": "a secret of mine"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def keyed(tmp_path_factory):
    long = SchedulerConfig(max_model_len=10_000)
    with FakeServer(tmp_path_factory.mktemp("keyed"), scheduler=long, security=KEYED) as server:
        yield server


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """As it is by default."""
    with FakeServer(tmp_path_factory.mktemp("plain")) as server:
        yield server


def operations(server, headers=None):
    """Every method and path that the server describes, parameters filled in."""
    paths = server.get("/openapi.json", headers).json()["paths"]
    for path, methods in paths.items():
        filled = path.replace("{", "").replace("}", "")
        for method in methods:
            yield method.upper(), filled


def error_of(path, response):
    """The error, if it has the shape of its endpoint's API, and nothing else."""
    body = response.json()
    if path.startswith("/v1/messages"):
        assert set(body) == {"type", "error", "request_id"}
        assert body["type"] == "error"
        assert body["request_id"] == response.headers["request-id"]
        details = body["error"].get("details")
        assert set(body["error"]) - {"details"} == {"type", "message"}
        assert details is None or set(details) == {"error_code"}
    else:
        assert set(body) == {"error"}
        assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def test_all_routes_are_described_but_those_for_people_and_tools(plain):
    known = set(plain.get("/openapi.json").json()["paths"])
    # A router that was included is one of the routes, or its routes are.
    routers = [getattr(one, "original_router", None) or [one] for one in plain.app.routes]
    paths = {route.path for one in routers for route in getattr(one, "routes", one)}
    assert {"/v1/chat/completions", "/v1/completions", "/v1/models"} <= known
    not_served = {"/v1/responses/compact", "/v1/responses/input_tokens"}
    undescribed = {path.replace(":path}", "}") for path in paths} - known
    assert undescribed == {"/", "/openapi.json"} | not_served


def test_without_a_key_every_endpoint_is_closed_but_the_probes(keyed):
    for method, path in operations(keyed, KEY):
        response = httpx.request(method, keyed.url + path)
        if path in OPEN_PATHS:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 401, path
            assert "key-" not in error_of(path, response)["message"]
            assert response.headers["www-authenticate"] == "Bearer"
    assert keyed.get("/openapi.json").status_code == 401
    assert keyed.get("/v1/no-such-thing").status_code == 401
    assert keyed.get("/v1/messages/x").json()["error"]["type"] == "authentication_error"


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer key-one"},
        {"authorization": "bearer key-two"},
        {"x-api-key": "key-one"},
    ],
)
def test_each_key_opens_the_server_in_both_headers(keyed, headers):
    assert keyed.post("/v1/chat/completions", CHAT, headers).status_code == 200


def test_a_refused_request_is_not_read(keyed):
    """With a wrong key the answer comes while the body is still on its way."""

    def endless():
        yield b'{"messages": "'
        assert answered.wait(30)
        yield b'"}'

    answered = threading.Event()
    with httpx.Client(base_url=keyed.url, timeout=30) as client:
        threading.Timer(0.5, answered.set).start()
        response = client.post("/v1/chat/completions", content=endless())
    assert response.status_code == 401


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_a_413_everywhere(keyed, announced):
    data = b'{"prompt": "' + b"x" * 2**18 + b'"}'
    for method, path in operations(keyed, KEY):
        if method != "POST":
            continue
        content = data if announced else iter([data[:1000], data[1000:]])
        headers = {**KEY, "content-type": "application/json"}
        response = httpx.post(keyed.url + path, content=content, headers=headers, timeout=30)
        # An endpoint that reads no body may answer without having seen it.
        if response.status_code != 413 and not announced:
            assert response.status_code in (400, 404), path
            continue
        assert response.status_code == 413, path
        assert "--max-body-mib" in error_of(path, response)["message"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b'{"messages": ' + b"[" * 5000 + b"]" * 5000 + b"}", "deep"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "deep"),
        (b"]" * 1000, "opened"),
        (b'{"a": ' + b"9" * 5000 + b"}", "body"),
        ("{}".encode("utf-16"), "UTF-8"),
        (b'{"a": "\xff"}', "body"),
        (b'{"a": NaN', "body"),
        (b"", "body"),
        (b"null", "body"),
        (b"[]", "body"),
    ],
)
def test_a_body_that_no_parser_should_see_is_a_400_everywhere(keyed, data, reason):
    for method, path in operations(keyed, KEY):
        if method != "POST":
            continue
        headers = {**KEY, "content-type": "application/json"}
        response = httpx.post(keyed.url + path, content=data, headers=headers, timeout=30)
        assert response.status_code in (400, 404), path
        message = error_of(path, response)["message"]
        if path == "/v1/chat/completions":
            assert reason in message


@pytest.mark.parametrize("kinds", [[JSON, FORM], [FORM, JSON]])
def test_json_is_measured_whatever_else_it_says_it_is(plain, kinds):
    headers = [("content-type", kind) for kind in kinds]
    data = b'{"messages": ' + b"[" * 200 + b"]" * 200 + b"}"
    response = httpx.post(f"{plain.url}/v1/chat/completions", content=data, headers=headers)
    assert "128 deep" in error_of("/v1/chat/completions", response)["message"]


IDS = [5] * 8000
BIASES = {str(i): 1 for i in range(1025)}
WIDE = {"enum": [f"a word with the number {i}" for i in range(6000)]}
MANY = [
    ("/v1/completions", {"prompt": "a", "n": 129}, "n"),
    ("/v1/completions", {"prompt": ["a"] * 1025}, "prompt"),
    ("/v1/completions", {"prompt": "a", "logprobs": 21}, "logprobs"),
    ("/v1/completions", {"prompt": IDS, "n": 128, "prompt_logprobs": 20}, "prompt_logprobs"),
    ("/v1/completions", {"prompt": [IDS] * 8, "n": 128, "logprobs": 0}, "prompt"),
    ("/v1/completions", {"prompt": "a", "stop": ["s"] * 65}, "stop"),
    ("/v1/completions", {"prompt": "a", "stop": ["s" * 1025]}, "stop"),
    ("/v1/completions", {"prompt": "a", "stop_token_ids": [1] * 65}, "stop_token_ids"),
    ("/v1/completions", {"prompt": "a", "logit_bias": BIASES}, "logit_bias"),
    ("/v1/completions", {"prompt": "a", "regex": "a" * 200_000}, "regex"),
    ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ("/v1/chat/completions", {"messages": [{}] * 16_385}, "messages"),
    ("/v1/chat/completions", {**CHAT, "tools": [1] * 1025}, "tools"),
    ("/v1/chat/completions", {**CHAT, "structured_outputs": {"json": WIDE}}, "structured_outputs"),
]


@pytest.mark.parametrize(("path", "body", "param"), MANY)
def test_one_request_cannot_ask_for_too_much(keyed, path, body, param):
    response = keyed.post(path, body, KEY)
    assert response.status_code == 400
    assert error_of(path, response)["param"] == param


def test_tools_have_a_size(plain):
    function = {"name": "f", "description": "d" * 2**20, "parameters": {"type": "object"}}
    body = {**CHAT, "tools": [{"type": "function", "function": function}]}
    response = plain.post("/v1/chat/completions", body)
    assert response.status_code == 400
    assert error_of("", response)["param"] == "tools"


def test_pages_of_the_allowed_origin_may_ask_and_no_others(keyed, plain):
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    friend, other = {"origin": "https://friend.example"}, {"origin": "https://other.example"}
    url = f"{keyed.url}/v1/chat/completions"
    leave = "access-control-allow-origin"
    assert httpx.options(url, headers={**ask, **friend}).headers[leave] == friend["origin"]
    assert leave not in httpx.options(url, headers={**ask, **other}).headers
    # A page can read why it was refused.
    assert keyed.post("/v1/chat/completions", CHAT, friend).headers[leave] == friend["origin"]
    for headers in (friend, other):
        response = plain.post("/v1/chat/completions", CHAT, headers)
        assert response.status_code == 403
        assert leave not in response.headers
        assert "--cors-origin" in error_of("", response)["message"]


def test_a_name_that_was_rebound_to_this_machine_is_refused(plain, keyed):
    rebound = {"host": "evil.example"}
    assert plain.get("/v1/models", rebound).status_code == 403
    # Where there are keys, a page that has none gets nothing anyway.
    assert keyed.get("/v1/models", {**rebound, **KEY}).status_code == 200


def served(caplog):
    """What the server's process logs; the client of these tests is in the same one."""
    theirs = ("httpx", "httpcore", "uvicorn.access")
    return [one.getMessage() for one in caplog.records if not one.name.startswith(theirs)]


def test_prompts_are_logged_only_if_that_was_asked_for(keyed, plain, caplog):
    caplog.set_level(logging.DEBUG)
    for own in ({}, {"seed": 14}, {"secret": 1}, {"messages": [{"a": "secret"}]}):
        plain.post("/v1/chat/completions", {**CHAT, **own})
    assert not [one for one in served(caplog) if "secret" in one]
    keyed.post("/v1/chat/completions?secret=1", CHAT, KEY)
    begin = "POST '/v1/chat/completions': status 200"
    # It is written when the client has its answer already.
    while not any(one.startswith(begin) for one in served(caplog)):
        time.sleep(0.01)
    texts = [one for one in served(caplog) if "secret" in one]
    assert len(texts) == 1
    assert "a secret of mine" in texts[0]
    assert "4 output tokens" in texts[0]
    assert not [one for one in served(caplog) if "key-two" in one]


class Opened:
    """Files opened, processes started and code run, as the interpreter sees them."""

    KINDS = ("open", "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn")

    def __init__(self):
        self.events = None
        sys.addaudithook(self._see)

    def _see(self, event, args):
        if self.events is not None and event in (*self.KINDS, "os.listdir", "os.scandir"):
            self.events.append((event, str(args[0])))


def test_no_path_and_no_header_reaches_the_file_system_or_a_shell(plain):
    mark = "../../etc/passwd;touch marked"
    seen = Opened()
    seen.events = []
    headers = {"x-api-key": mark, "user-agent": mark, "referer": mark, "x-request-id": mark}
    paths = ["/v1/models/", "/v1/responses/", "/", "//", "/static/", "/docs/", "/v1/files/"]
    for path in paths:
        for tail in (mark, mark.replace("/", "%2f"), "%2e%2e%2f%2e%2e%2fetc%2fpasswd"):
            response = httpx.get(plain.url + path + tail, headers=headers)
            assert response.status_code == 404, path
            assert "root:" not in response.text
    body = {**CHAT, "model": "/etc/passwd", "user": mark}
    assert plain.post("/v1/chat/completions", body, headers).status_code == 404
    assert plain.post("/v1/chat/completions", {**body, "model": MODEL}, headers).is_success
    events, seen.events = seen.events, None
    assert not [event for event in events if "passwd" in event[1] or "marked" in event[1]]
    assert {event for event, _ in events} <= {"open"}


def test_errors_that_quote_a_request_are_short(plain):
    response = plain.post("/v1/chat/completions", {"x" * 100_000: 1, **CHAT})
    assert response.status_code == 400
    assert len(response.content) < 10_000
    assert "remove it" in json.loads(response.content)["error"]["message"]
