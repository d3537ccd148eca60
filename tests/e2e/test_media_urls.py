"""Media named by URL, through the whole server: from a host that is quick, slow, huge or away."""

import asyncio
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import openai
import pytest
from fake_server import MODEL
from omni_server import make_omni, omni_server, user

from media_files import gradient, make_image
from mimo_engine.config.media_settings import MediaLimits

PICTURE = make_image(gradient(160, 128))


class Host(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        if self.path == "/picture.png":
            self._answer(200, PICTURE)
        elif self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/picture.png")
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/huge":
            self.send_response(200)
            self.send_header("Content-Length", str(1 << 40))
            self.end_headers()
        elif self.path == "/slow":
            self.send_response(200)
            self.send_header("Content-Length", str(len(PICTURE)))
            self.end_headers()
            self._trickle()
        else:
            self._answer(404, b"nothing")

    def _answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _trickle(self):
        try:
            for byte in PICTURE:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                if self.server.closing.wait(0.05):
                    return
        except OSError:
            pass

    def log_message(self, *arguments):
        pass


@pytest.fixture(scope="module")
def host():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    server.closing = threading.Event()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.closing.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    limits = MediaLimits(allow_private_media_hosts=True, media_timeout_s=1.0, max_media_mib=1.0)
    model = make_omni(tmp_path_factory.mktemp("omni") / "model")
    with omni_server(model, limits=limits) as server:
        yield server


def part(url):
    return {"type": "image_url", "image_url": {"url": url}}


async def ask(client, *parts):
    return await client.chat.completions.create(
        model=MODEL, messages=[user("Look:", *parts)], max_tokens=4, temperature=0.0
    )


@pytest.mark.parametrize("path", ["/picture.png", "/moved"])
def test_a_picture_is_fetched(server, host, path):
    with server.openai() as client:
        answer = client.chat.completions.create(
            model=MODEL, messages=[user(part(host + path), "What?")], max_tokens=2
        )
    assert answer.usage.prompt_tokens_details.image_tokens == 20


@pytest.mark.parametrize("path", ["/slow", "/huge", "/nothing"])
def test_a_url_that_cannot_be_had_is_refused_in_its_time_while_others_go_on(server, host, path):
    async def main():
        async with server.async_openai() as client:
            started = time.monotonic()
            bad = asyncio.create_task(ask(client, part(host + path)))
            await asyncio.sleep(0.05)
            text = await ask(client)
            picture = await ask(client, part(f"{host}/picture.png"))
            with pytest.raises(openai.BadRequestError) as caught:
                await bad
            return caught.value, time.monotonic() - started, text, picture

    error, seconds, text, picture = asyncio.run(main())
    assert error.status_code == 400
    assert error.param.startswith("messages[0].content[1]")
    assert "messages[0].content[1]" in error.body["message"]
    assert seconds < 20
    assert text.usage.completion_tokens == picture.usage.completion_tokens == 4


def test_one_bad_part_refuses_the_request_and_leaves_no_download(server, host):
    async def main():
        async with server.async_openai() as client:
            started = time.monotonic()
            with pytest.raises(openai.BadRequestError, match=r"content\[2\]"):
                await ask(client, part(f"{host}/slow"), part(f"{host}/nothing"))
            return time.monotonic() - started

    # The slow one is not waited for.
    assert asyncio.run(main()) < 20
