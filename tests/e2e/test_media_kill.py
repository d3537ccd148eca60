"""Features live in anonymous memory: nothing of them is left, whoever dies and whenever."""

import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fake_server import MODEL, until
from omni_server import image_part, make_omni, omni_server, user, video_part

from media_files import gradient, make_image, make_video, numbered_frame
from mimo_engine.config.media_settings import EncoderConfig

FEATURES = "mimo-engine-features"


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    # Two layers: the towers and the memory are what is looked at.
    return make_omni(tmp_path_factory.mktemp("omni") / "model", "--num-layers", "2")


def num_files(pid="self"):
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def maps_features(pid="self"):
    return FEATURES in Path(f"/proc/{pid}/maps").read_text()


def holds_features(pid="self"):
    links = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        try:
            links.append(os.readlink(path))
        except FileNotFoundError:
            continue
    return maps_features(pid) or any(FEATURES in link for link in links)


def exists(pid):
    return Path(f"/proc/{pid}").exists()


def post(server, *parts, max_tokens=2):
    body = {"model": MODEL, "messages": [user(*parts)], "max_tokens": max_tokens}
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def numbered_video(number):
    """No two of them have a frame in common: what one has is not found in a cache for another."""
    frames = [numbered_frame(120 * number + i) for i in range(120)]
    return video_part(make_video(frames, fps=8), fps=8)


def is_stopped(pid):
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def stops_while_it_encodes(pid, timeout_s):
    """Whether an engine was found to encode in that time. It is stopped then: what it is about does
    not end before the test has gone on."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if maps_features(pid):
            os.kill(pid, signal.SIGSTOP)
            until(lambda: is_stopped(pid))
            if maps_features(pid):
                return True
            os.kill(pid, signal.SIGCONT)
        time.sleep(0.005)
    return False


def test_an_engine_killed_while_it_encodes_leaves_nothing(omni):
    # One unit a step, so that the video is being encoded for a while.
    with omni_server(omni, encoder=EncoderConfig(max_encoder_tokens=1)) as server:
        picture = image_part(make_image(gradient(160, 128)))
        assert post(server, picture, "What?").status_code == 200
        until(lambda: not holds_features())
        files = num_files()
        pid = server.engine.engine_pid

        def ask_until_it_fails(first):
            for number in range(first, 30, 3):
                status = post(server, numbered_video(number), "What?").status_code
                if status != 200:
                    return status
            return None

        with ThreadPoolExecutor(3) as clients:
            answers = [clients.submit(ask_until_it_fails, first) for first in range(3)]
            assert stops_while_it_encodes(pid, 60)
            os.kill(pid, signal.SIGKILL)
        assert {answer.result() for answer in answers} <= {500, 503}
        until(lambda: server.engine.trouble is None)
        until(lambda: not holds_features())
        assert not exists(pid)
        assert post(server, picture, "What?").status_code == 200
        until(lambda: not holds_features(server.engine.engine_pid))
        until(lambda: num_files() <= files)
        pid = server.engine.engine_pid
    until(lambda: not exists(pid))


def test_features_of_ended_and_aborted_requests_are_let_go(omni):
    with omni_server(omni, encoder=EncoderConfig(max_encoder_tokens=1)) as server:
        pid = server.engine.engine_pid
        # Once more where the first was encoded before anybody looked.
        for number in range(10):
            body = {"model": MODEL, "messages": [user(numbered_video(number))]}
            with server.asked("/v1/chat/completions", body):
                if stopped := stops_while_it_encodes(pid, 10):
                    break
        assert stopped
        until(lambda: server.metric('mimo_engine_requests_total{finish_reason="abort"}'))
        os.kill(pid, signal.SIGCONT)
        until(lambda: not holds_features(pid))
        assert post(server, numbered_video(number), "What?").status_code == 200
        until(lambda: not holds_features(pid))
        assert not holds_features()


def test_a_client_killed_with_features_under_way_takes_its_engine_along(omni):
    program = textwrap.dedent(
        """
        import sys, time
        sys.path[:0] = sys.argv[2:4]
        from omni_server import image_part, omni_server, user
        from media_files import gradient, make_image
        import httpx
        if __name__ == "__main__":
            with omni_server(sys.argv[1]) as server:
                print(server.engine.engine_pid, flush=True)
                body = {"messages": [user(image_part(make_image(gradient(640, 640))))]}
                while True:
                    url = f"{server.url}/v1/chat/completions"
                    httpx.post(url, json=body | {"max_tokens": 1}, timeout=60)
        """
    )
    here = Path(__file__).parent
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "client.py"
        path.write_text(program)
        with subprocess.Popen(
            [sys.executable, str(path), omni, str(here), str(here.parent)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as client:
            engine = int(client.stdout.readline())
            time.sleep(0.5)
            client.kill()
        until(lambda: not exists(engine))
