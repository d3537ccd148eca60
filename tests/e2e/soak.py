"""Many clients for a long time against the real command: nothing hangs, leaks or loses its shape.

The engine process is killed once on the way. What is looked at:

- every answer comes within `PATIENCE_S`, has the status that its request deserves, and every error
  has its API's shape; what the kill hits may fail with 500 or 503, for a while, in that shape too;
- every stream that nobody left ends as its API says, or with an error event;
- when all is quiet no page is in use by a request, descriptors of both processes are what they were
  before it began, and memory what it was when half of the time had passed.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from soak_traffic import MESSAGES, RESPONSES, TRANSCRIPTIONS, Traffic

COMMAND = Path(sys.executable).with_name("mimo-engine")
FLAGS = [
    "--device", "cpu", "--kv-cache-gib", "0.05", "--max-num-seqs", "24", "--max-queue-len", "256",
]  # fmt: skip
PATIENCE_S = 240
"""For one answer, on a machine that does other things too."""
KILL_S = 90
"""After the kill, answers may be 500 or 503 for so long."""
SLACK_MB = 48


class Server:
    """The command in a process, and what it wrote to stderr."""

    def __init__(self):
        self.process = subprocess.Popen(
            [str(COMMAND), "serve", "demo", "--port", "0", *FLAGS],
            stderr=subprocess.PIPE,
            text=True,
        )
        self.log = []
        self._up = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._up.wait(120)
        assert self.url, "".join(self.log)

    def _read(self):
        self.url = None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"serving on (http://[^/]+)", line):
                self.url = found[1]
                self._up.set()
        self._up.set()

    @property
    def pids(self):
        """The server's process and its engine's. A child that is a resource tracker is neither."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        engines = [c for c in children if b"spawn_main" in Path(f"/proc/{c}/cmdline").read_bytes()]
        return [pid, *map(int, engines)]

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(10)
        self.process.stderr.close()
        return code


@dataclass
class Sample:
    """What a process holds."""

    descriptors: int
    rss_mb: float

    @classmethod
    def of(cls, pid):
        status = Path(f"/proc/{pid}/status").read_text()
        return cls(
            descriptors=len(os.listdir(f"/proc/{pid}/fd")),
            rss_mb=int(re.search(r"RssAnon:\s+(\d+)", status)[1]) / 1024,
        )


@dataclass
class Report:
    """What came of a soak."""

    answers: Counter = field(default_factory=Counter)
    """By path and status; "left" for streams that the client left."""
    faults: list = field(default_factory=list)
    start: list = field(default_factory=list)
    """Of the server and its engine, as half and end."""
    half: list = field(default_factory=list)
    end: list = field(default_factory=list)
    pages: dict = field(default_factory=dict)
    """In use at the end, by group, and the gauge of running requests."""
    exit_code: int | None = None
    log: list = field(default_factory=list)

    def check(self):
        assert not self.faults, "\n".join(map(str, self.faults[:20]))
        assert not any(self.pages.values()), self.pages
        assert len(self.half) == len(self.end) == 2
        for idle, before, after in zip(self.start, self.half, self.end, strict=True):
            assert after.descriptors <= idle.descriptors + 4, (idle, after)
            assert after.rss_mb <= 1.1 * before.rss_mb + SLACK_MB, (before, after)
        assert not [line for line in self.log if "Traceback" in line], "".join(self.log[-60:])
        assert self.exit_code == 0


async def soak(duration_s, *, num_clients=64, seed=0):
    """Run the command under traffic for `duration_s`; the engine is killed in the middle."""
    server = Server()
    report = Report()
    try:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=PATIENCE_S, limits=limits
        ) as client:
            await client.get("/health")
            report.start = [Sample.of(pid) for pid in server.pids]
            run = _Run(client, report, Traffic(seed))
            end = time.monotonic() + duration_s
            clients = [asyncio.create_task(run.client(end)) for _ in range(num_clients)]
            # Early, so that the engine that comes after it has filled its caches at half time.
            await asyncio.sleep(duration_s / 8)
            os.kill(server.pids[1], signal.SIGKILL)
            run.killed_at = time.monotonic()
            await asyncio.sleep(duration_s * 3 / 8)
            # On a busy machine a short soak is at its half before the new engine is up.
            while (await client.get("/health")).status_code != 200:
                await asyncio.sleep(0.1)
            report.half = [Sample.of(pid) for pid in server.pids]
            await asyncio.gather(*clients)
            report.pages = await _when_quiet(client)
        # Connections have been closed; what is left of them is the server's to let go.
        await asyncio.sleep(2)
        report.end = [Sample.of(pid) for pid in server.pids]
    finally:
        report.exit_code = server.stop()
        report.log = server.log
    return report


class _Run:
    def __init__(self, client, report, traffic):
        self._client = client
        self._report = report
        self._traffic = traffic
        self.killed_at = None

    async def client(self, end):
        while time.monotonic() < end:
            ask = self._traffic.next()
            leaves = ask.streams and self._traffic.leaves()
            started = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    outcome = await self._ask(ask, leaves)
            except Exception as error:
                self._fault(ask, f"{type(error).__name__}: {error}")
                continue
            was_hit = (
                self.killed_at is not None
                and started - KILL_S < self.killed_at < time.monotonic() + 1
                and time.monotonic() - self.killed_at < KILL_S
            )
            self._report.answers[f"{ask.path} {outcome}"] += 1
            if outcome not in ("left", ask.status) and not (was_hit and outcome in (500, 503)):
                self._fault(ask, f"was answered {outcome}, not {ask.status}")

    def _fault(self, ask, what):
        body = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body)
        self._report.faults.append(f"{ask.path} {what}: {body[:400]}")

    async def _ask(self, ask, leaves):
        """The status, 500 for a stream that ended in an error, or "left"."""
        async with self._client.stream(**_request(ask)) as response:
            if not (ask.streams and response.status_code == 200):
                content = await response.aread()
                if response.status_code >= 400:
                    _check_error(ask, json.loads(content))
                return response.status_code
            return await self._read_stream(ask, response, leaves)

    async def _read_stream(self, ask, response, leaves):
        last, num_events = None, 0
        async with contextlib.aclosing(response.aiter_lines()) as lines:
            async for line in lines:
                if not line.startswith("data: "):
                    continue
                num_events += 1
                if leaves and num_events > 2:
                    return "left"
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    last = last if _is_error(last) else data
                    continue
                last = json.loads(data)
        if _is_error(last):
            if ask.path == RESPONSES:
                assert {"code", "message"} <= set(last["response"]["error"]), last
            else:
                _check_error(ask, last)
            return 500
        assert _is_end(ask, last), f"the stream ended with {last}"
        return 200


def _request(ask):
    if ask.files is not None:
        files = {name: (name, base64.b64decode(data)) for name, data in ask.files.items()}
        return {"method": "POST", "url": ask.path, "data": ask.body, "files": files}
    if ask.body is None:
        return {"method": "GET", "url": ask.path}
    content = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body).encode()
    headers = {"content-type": "application/json", **ask.headers}
    return {"method": "POST", "url": ask.path, "content": content, "headers": headers}


def _is_error(event):
    return isinstance(event, dict) and (
        event.get("type") in ("error", "response.failed") or "error" in event
    )


def _is_end(ask, last):
    if ask.path == MESSAGES:
        return last == {"type": "message_stop"}
    if ask.path == RESPONSES:
        return last["type"] in ("response.completed", "response.incomplete")
    if ask.path == TRANSCRIPTIONS:
        return last == "[DONE]" or last["type"] == "transcript.text.done"
    return last == "[DONE]"


def _check_error(ask, body):
    error = body["error"]
    assert error["message"]
    assert error["type"]
    if ask.is_anthropic:
        assert body["type"] == "error", body
    else:
        assert {"param", "code"} <= set(error), body


async def _when_quiet(client):
    """Pages in use and requests in the engine, once they have stopped falling."""
    names = [
        'mimo_engine_kv_pages_used{group="full"}',
        'mimo_engine_kv_pages_used{group="sliding"}',
        "mimo_engine_requests_running",
        "mimo_engine_requests_waiting",
    ]
    deadline = time.monotonic() + 60
    while True:
        lines = (await client.get("/metrics")).text.splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        found = {name: float(values[name]) for name in names}
        if not any(found.values()) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(0.5)
