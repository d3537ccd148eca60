"""Many clients for a long time against the real command: nothing hangs, leaks or loses its shape.

The engine process is killed once on the way. What is looked at:

- every answer comes within `PATIENCE_S`, has the status that its request deserves, and every error
  has its API's shape; what the kill hits may fail with 500 or 503, for a while, in that shape too;
- every stream that nobody left ends as its API says, or with an error event;
- every route that the server describes was asked, and answered as it should;
- when all is quiet no page is in use by a request, descriptors of both processes are what they were
  before it began, no more responses are kept than may be, and in a long soak memory is what it was
  after a while of traffic.
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
MAX_KEPT, MAX_KEPT_MIB = 256, 4
"""Responses that the server keeps: few, but more than can end between two asks of a talk."""
FLAGS = [
    "--device", "cpu", "--kv-cache-gib", "0.05", "--max-num-seqs", "24", "--max-queue-len", "256",
    "--response-store", str(MAX_KEPT), "--response-store-mib", str(MAX_KEPT_MIB),
]  # fmt: skip
PATIENCE_S = 240
"""For one answer, on a machine that does other things too."""
KILL_S = 90
"""After the kill, answers may be 500 or 503 for so long."""
SLACK_MB = 48
SLACK_DESCRIPTORS = 4
ABORTS = 'mimo_engine_requests_total{finish_reason="abort"}'
HIDDEN_ROUTES = {"GET /", "GET /openapi.json"}
"""The server does not describe them."""


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
    """By route and status; "left" for those that the client left."""
    routes: set = field(default_factory=set)
    """That the server has."""
    asked: set = field(default_factory=set)
    """Of these, answered as they should be."""
    faults: list = field(default_factory=list)
    start: list = field(default_factory=list)
    """Of the server and its engine, as settled and end."""
    settled: list = field(default_factory=list)
    """Empty in a short soak."""
    end: list = field(default_factory=list)
    pages: dict = field(default_factory=dict)
    """In use at the end, by group, and the gauges of requests."""
    num_aborts: int = 0
    num_made: int = 0
    """Responses to be kept, as far as clients know of them; how many are, and their bytes."""
    num_kept: int = 0
    kept_bytes: int = 0
    exit_code: int | None = None
    log: list = field(default_factory=list)

    def check(self):
        assert not self.faults, "\n".join(map(str, self.faults[:20]))
        assert not self.routes - self.asked, self.routes - self.asked
        assert not any(self.pages.values()), self.pages
        assert self.num_aborts > 0
        assert min(self.num_made, MAX_KEPT // 2) <= self.num_kept <= MAX_KEPT
        assert self.kept_bytes <= MAX_KEPT_MIB * 2**20
        assert len(self.start) == len(self.end) == 2
        assert not self.holds_more, (self.start, self.end)
        for before, after in zip(self.settled, self.end[: len(self.settled)], strict=True):
            assert after.rss_mb <= 1.1 * before.rss_mb + SLACK_MB, (before, after)
        assert not [line for line in self.log if "Traceback" in line], "".join(self.log[-60:])
        assert self.exit_code == 0

    @property
    def holds_more(self):
        """Whether a process has more descriptors at the end than before it began."""
        return any(
            after.descriptors > idle.descriptors + SLACK_DESCRIPTORS
            for idle, after in zip(self.start, self.end, strict=True)
        )


async def soak(duration_s, *, num_clients=64, seed=0, settles_s=None):
    """Run the command under traffic for `duration_s`, or until every route has been asked; the
    engine is killed early. `settles_s`: traffic of so long fills the caches of the next one, and
    memory is looked at from then on."""
    server = Server()
    report = Report()
    try:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=server.url, timeout=PATIENCE_S, limits=limits
        ) as client:
            paths = (await client.get("/openapi.json")).json()["paths"]
            described = {f"{method.upper()} {path}" for path in paths for method in paths[path]}
            report.routes = described | HIDDEN_ROUTES
            report.start = [Sample.of(pid) for pid in server.pids]
            run = _Run(client, report, Traffic(seed))
            end = time.monotonic() + duration_s
            clients = [asyncio.create_task(run.client(end)) for _ in range(num_clients)]
            await asyncio.sleep(duration_s / 8)
            os.kill(server.pids[1], signal.SIGKILL)
            run.killed_at = time.monotonic()
            async with asyncio.timeout(PATIENCE_S):
                while (await client.get("/health")).status_code != 200:
                    await asyncio.sleep(0.1)
            if settles_s is not None:
                await asyncio.sleep(settles_s)
                report.settled = [Sample.of(pid) for pid in server.pids]
            await asyncio.gather(*clients)
            await _when_quiet(client, report)
            await run.count_kept()
        # Connections have been closed; what is left of them is the server's to let go.
        deadline = time.monotonic() + 60
        while not report.end or (report.holds_more and time.monotonic() < deadline):
            await asyncio.sleep(0.1)
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
        """Talks until `end`, and then for what nobody has asked yet."""
        while self._goes_on(end):
            talk = self._traffic.next()
            ask = next(talk)
            while ask is not None and self._goes_on(end):
                answer = await self._try(self._traffic.hurried(ask))
                try:
                    ask = talk.send(answer)
                except StopIteration:
                    ask = None
                except Exception as error:
                    self._fault(ask, f"is not as it should be: {error!r}: {answer}")
                    ask = None

    def _goes_on(self, end):
        now = time.monotonic()
        return now < end or (self._report.routes - self._report.asked and now < end + KILL_S)

    async def _try(self, ask):
        """What was answered; None: not what the talk goes on with."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(PATIENCE_S):
                outcome, answer = await self._ask(ask)
        except Exception as error:
            self._fault(ask, f"{type(error).__name__}: {error}")
            return None
        was_hit = (
            self.killed_at is not None
            and started - KILL_S < self.killed_at < time.monotonic() + 1
            and time.monotonic() - self.killed_at < KILL_S
        )
        self._report.answers[f"{ask.route} {outcome}"] += 1
        if outcome == ask.status:
            self._report.asked.add(ask.route)
            return answer
        if was_hit and outcome in (500, 503):
            # The new engine needs the machine more than a refusal after the other does.
            await asyncio.sleep(0.5)
        elif outcome != "left":
            self._fault(
                ask, f"was answered {outcome}, not {ask.status}: {json.dumps(answer)[:400]}"
            )
        return None

    async def count_kept(self):
        """How many responses the server has of all those that nobody deleted."""
        self._report.num_made = len(self._traffic.kept)
        for response_id in self._traffic.kept:
            response = await self._client.get(f"{RESPONSES}/{response_id}")
            if response.status_code == 200:
                self._report.num_kept += 1
                self._report.kept_bytes += len(response.content)

    def _fault(self, ask, what):
        body = ask.body if isinstance(ask.body, bytes) else json.dumps(ask.body)
        self._report.faults.append(f"{ask.method} {ask.path} {what}: {body[:400]}")

    async def _ask(self, ask):
        """The status, 500 for a stream that ended in an error, or "left"; and what came, if that is
        JSON and whole."""
        try:
            async with asyncio.timeout(ask.leaves_s) as patience:
                return await self._read(ask)
        except TimeoutError:
            if not patience.expired():
                raise
            return "left", None

    async def _read(self, ask):
        async with self._client.stream(**_request(ask)) as response:
            if ask.streams and response.status_code == 200:
                return await self._read_stream(ask, response)
            content = await response.aread()
            is_json = response.headers["content-type"].startswith("application/json")
            answer = json.loads(content) if is_json else None
            if response.status_code >= 400:
                _check_error(ask, answer)
            return response.status_code, answer

    async def _read_stream(self, ask, response):
        last, num_events = None, 0
        async with contextlib.aclosing(response.aiter_lines()) as lines:
            async for line in lines:
                if not line.startswith("data: "):
                    continue
                num_events += 1
                if ask.leaves_stream and num_events > 2:
                    return "left", None
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
            return 500, None
        assert _is_end(ask, last), f"the stream ended with {last}"
        return 200, last["response"] if ask.path == RESPONSES else None


def _request(ask):
    if ask.files is not None:
        files = {name: (name, base64.b64decode(data)) for name, data in ask.files.items()}
        return {"method": "POST", "url": ask.path, "data": ask.body, "files": files}
    if ask.body is None:
        return {"method": ask.method, "url": ask.path}
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


async def _when_quiet(client, report):
    """Pages in use and requests in the engine, once they have fallen to nothing or never do; and
    how many requests were aborted."""
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
        report.pages = {name: float(values[name]) for name in names}
        report.num_aborts = float(values.get(ABORTS, 0))
        if not any(report.pages.values()) or time.monotonic() > deadline:
            return
        await asyncio.sleep(0.5)
