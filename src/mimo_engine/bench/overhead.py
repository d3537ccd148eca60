"""What the server itself costs a streamed token, at 1 and at 64 streams.

The server is the real one in a process of its own. The engine behind it says a fixed text, a token
for each stream at each tick, and computes nothing. For each API that streams:

    CPU      time of the server's process, a token
    lag      from the tick that made a token to the event at the client that brings it, median and
             p99: two sockets, the server, and what else runs on this machine are in it
    of core  share of one core that these streams take at these ticks: the server has one thread for
             all of them, so this is its share of the hardware's limit

Every stream must say the whole text.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from mimo_engine.bench.record import append_result
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.engine import EngineConfig
from mimo_engine.config.server import ServerConfig
from mimo_engine.messages import EngineInfo, EngineStats, NewRequest, TokenOutput
from mimo_engine.server.run import run_server
from mimo_engine.utils.hub import DEMO, resolve_model

__all__ = ["Measurement", "build_paced", "main", "measure"]

TEXT = "The river was higher than it had been for many years, and she said so to the people. "
NUM_TOKENS = {1: 1000, 64: 200}
"""Of a stream, by the number of streams."""
TICK_S = {1: 0.004, 64: 0.05}
"""Likewise; near what a step of the 310B model takes at such batches."""
GATHER_S = 0.5
"""From the first request to the first tick, by when the others must have come."""
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
TICKS = "ticks.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """One API at one number of streams; times of a token."""

    path: str
    num_streams: int
    tick_s: float
    cpu_us: float
    lag_ms: float
    p99_lag_ms: float
    core_share: float


def build_paced(config: EngineConfig) -> _PacedCore:
    """The engine of this bench, for `run_server`. It leaves its ticks in the model's directory."""
    return _PacedCore(Tokenizer.from_dir(Path(config.model)), Path(config.model) / TICKS)


def _text_ids(tokenizer: Tokenizer, count: int) -> list[int]:
    ids = tokenizer.encode(TEXT)
    return [ids[i % len(ids)] for i in range(count)]


@dataclass
class _PacedCore:
    """Says TEXT over and over; ticks are due at times that do not depend on how late others were.

    Monotonic clocks are the machine's, so a tick's time means the same to the bench's process.
    """

    tokenizer: Tokenizer
    path: Path
    live: dict[str, list[int]] = field(default_factory=dict)
    """What is left to say, the next token last."""
    tick_s: float = 0.0
    due_s: float = 0.0
    ticks_s: list[float] = field(default_factory=list)

    @property
    def has_work(self) -> bool:
        return bool(self.live)

    def add(self, request: NewRequest, features: Sequence[Any] = ()) -> None:
        del features
        if not self.live:
            self.due_s, self.ticks_s = monotonic() + GATHER_S, []
        ids = _text_ids(self.tokenizer, request.params.max_tokens or 1)
        self.live[request.request_id] = ids[::-1]

    def abort(self, request_id: str) -> bool:
        return self.live.pop(request_id, None) is not None

    def step(self) -> list[TokenOutput]:
        if not self.ticks_s and monotonic() < self.due_s:
            # The others' requests are read between steps.
            sleep(0.001)
            return []
        sleep(max(0.0, self.due_s - monotonic()))
        self.due_s += TICK_S[64 if len(self.live) > 1 else 1]
        self.ticks_s.append(monotonic())
        outputs = [self._advance(request_id, ids) for request_id, ids in self.live.items()]
        self.live = {request_id: ids for request_id, ids in self.live.items() if ids}
        if not self.live:
            self.path.write_text(json.dumps(self.ticks_s), encoding="ascii")
        return outputs

    @staticmethod
    def _advance(request_id: str, ids: list[int]) -> TokenOutput:
        token_id = ids.pop()
        reason = None if ids else "length"
        return TokenOutput(request_id=request_id, token_ids=[token_id], finish_reason=reason)

    def stats(self) -> EngineStats:
        return EngineStats(num_running=len(self.live))

    def info(self) -> EngineInfo:
        return EngineInfo(
            max_model_len=1 << 16,
            vocab_size=self.tokenizer.num_tokens,
            num_full_pages=1,
            num_sliding_pages=1,
            page_size=16,
        )

    def close(self) -> None:
        pass


def _body(path: str, num_tokens: int) -> Mapping[str, Any]:
    user = [{"role": "user", "content": "Go on."}]
    match path:
        case "/v1/completions":
            return {"prompt": "Go on.", "max_tokens": num_tokens, "stream": True}
        case "/v1/responses":
            return {"input": "Go on.", "max_output_tokens": num_tokens, "stream": True}
        case "/v1/messages":
            model = {"model": DEMO, "messages": user}
            return {**model, "max_tokens": num_tokens, "stream": True}
        case _:
            return {"messages": user, "max_tokens": num_tokens, "stream": True}


def _text_of(path: str, event: Mapping[str, Any]) -> str:
    """What an event of a stream adds to the text."""
    match path:
        case "/v1/completions":
            return event["choices"][0]["text"]
        case "/v1/responses":
            return event["delta"] if event["type"] == "response.output_text.delta" else ""
        case "/v1/messages":
            return event["delta"]["text"] if event["type"] == "content_block_delta" else ""
        case _:
            return event["choices"][0]["delta"].get("content") or ""


async def _stream(port: int, path: str, num_tokens: int) -> tuple[str, list[tuple[int, float]]]:
    """The text of one stream, and after each event how long it is and when that was."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = json.dumps(_body(path, num_tokens)).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\nconnection: close\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    lines: list[tuple[bytes, float]] = []
    # What the lines say is read when the clock no longer runs: it would delay the others.
    while line := await reader.readline():
        lines.append((line, monotonic()))
    writer.close()
    text, arrivals = "", []
    for line, at_s in lines:
        if line.startswith(b"data: {"):
            text += _text_of(path, json.loads(line.removeprefix(b"data: ")))
            arrivals.append((len(text), at_s))
    return text, arrivals


async def _streams(port: int, path: str, num_streams: int) -> list[list[tuple[int, float]]]:
    num_tokens = NUM_TOKENS[num_streams]
    results = await asyncio.gather(*(_stream(port, path, num_tokens) for _ in range(num_streams)))
    assert len({text for text, _ in results}) == 1, "streams of one text differ"
    return [arrivals for _, arrivals in results]


def measure(port: int, pid: int, model: Path, path: str, num_streams: int) -> Measurement:
    """`pid`: of the server, which has `port` open."""
    tokenizer, num_tokens = Tokenizer.from_dir(model), NUM_TOKENS[num_streams]
    before_s = _cpu_s(pid)
    streams = asyncio.run(_streams(port, path, num_streams))
    cpu_us = 1e6 * (_cpu_s(pid) - before_s) / (num_streams * num_tokens)
    ticks_s = json.loads((model / TICKS).read_text(encoding="ascii"))
    assert len(ticks_s) == num_tokens, "a request came after the first tick: too busy"
    ids = _text_ids(tokenizer, num_tokens)
    ends = list(accumulate(len(tokenizer.token_bytes(i)) for i in ids))
    lags_ms = []
    for arrivals in streams:
        assert arrivals[-1][0] == ends[-1], "a stream did not say the whole text"
        events = iter(arrivals)
        length, at_s = 0, 0.0
        for end, tick_s in zip(ends, ticks_s, strict=True):
            while length < end:
                length, at_s = next(events)
            lags_ms.append(1e3 * (at_s - tick_s))
    return Measurement(
        path=path,
        num_streams=num_streams,
        tick_s=TICK_S[num_streams],
        cpu_us=round(cpu_us, 1),
        lag_ms=round(statistics.median(lags_ms), 2),
        p99_lag_ms=round(sorted(lags_ms)[len(lags_ms) * 99 // 100], 2),
        core_share=round(cpu_us / 1e6 * num_streams / TICK_S[num_streams], 3),
    )


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _serve(model: Path, port: int) -> None:
    run_server(
        EngineConfig(model=str(model)),
        ServerConfig(port=port, served_model_name=DEMO),
        "mimo_engine.bench.overhead:build_paced",
    )


def _wait_for(port: int) -> None:
    deadline = monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except ConnectionRefusedError:
            assert monotonic() < deadline, "the server did not start"
            sleep(0.05)


def _measure_all() -> list[Measurement]:
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        model = Path(folder)
        for file in resolve_model(DEMO).glob("*.json*"):
            (model / file.name).symlink_to(file)
        server = multiprocessing.get_context("spawn").Process(target=_serve, args=(model, port))
        server.start()
        try:
            _wait_for(port)
            assert server.pid is not None
            rows = []
            for path in PATHS:
                for num_streams in NUM_TOKENS:
                    rows.append(measure(port, server.pid, model, path, num_streams))
            return rows
        finally:
            server.terminate()
            server.join()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append one line to benchmarks/results/overhead.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    rows = _measure_all()
    print(f"{'':<22}{'streams':>8}{'tick ms':>9}{'CPU us':>8}{'lag ms':>8}{'p99':>8}{'of core':>9}")
    for row in rows:
        print(
            f"{row.path:<22}{row.num_streams:>8}{1e3 * row.tick_s:>9.0f}{row.cpu_us:>8.1f}"
            f"{row.lag_ms:>8.2f}{row.p99_lag_ms:>8.2f}{row.core_share:>9.1%}"
        )
    if not options.no_record:
        payload = {"config": {"text": TEXT}, "results": [asdict(row) for row in rows]}
        append_result("overhead", payload)


if __name__ == "__main__":
    main()
