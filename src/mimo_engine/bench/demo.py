"""How soon the demo model answers, and how fast it speaks.

    first token   from starting the server's process to the first token of a streamed answer about
                  an image, the imports of an installed tree included
    decode        tokens a second of one stream, in this process, the prompt left out

Both are medians of a few runs on this machine's CPU. The demo's answer about the image must be
right in every run.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import statistics
import subprocess
import sys
from collections.abc import Sequence
from time import perf_counter
from typing import Any

from mimo_engine import LLM, SamplingParams
from mimo_engine.bench.record import append_result
from mimo_engine.demo.image_tasks import IMAGE_TASKS
from mimo_engine.eval.demo_sets import wire_message
from mimo_engine.utils.hub import DEMO

__all__ = ["decode_rate", "first_token_s", "main"]

FIRST_TOKEN_LIMIT_S = 15.0
DECODE_LIMIT = 60.0
_NUM_TOKENS = 200


def _image_request() -> tuple[bytes, str]:
    """A held-out picture of the demo's first image task, and the right answer."""
    example = IMAGE_TASKS[0].make(random.Random(0), "test")
    body = {
        "messages": [wire_message(message) for message in example.messages],
        "temperature": 0.0,
        "max_tokens": 8,
        "stream": True,
    }
    return json.dumps(body).encode(), str(example.answer["content"])


def first_token_s(model: str) -> tuple[float, str]:
    """(seconds from nothing to the first token, the whole answer)."""
    program = "import sys; from mimo_engine.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "serve", model, "--port", "0"]
    body, _ = _image_request()
    started = perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            return _ask(server, body, started)
        finally:
            server.terminate()
            assert server.stderr is not None
            server.stderr.read()


def _ask(server: subprocess.Popen[str], body: bytes, started: float) -> tuple[float, str]:
    assert server.stderr is not None
    found = None
    for line in server.stderr:
        found = re.search(r"serving on http://([0-9.]+):(\d+)/v1", line)
        if found:
            break
    assert found is not None, "the server did not start"
    connection = http.client.HTTPConnection(found[1], int(found[2]), timeout=60)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", body, headers)
    response = connection.getresponse()
    assert response.status == 200, response.read()
    first, pieces = 0.0, []
    for raw in response:
        line = raw.decode().strip()
        if not line.startswith("data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            delta = choice["delta"]
            piece = (delta.get("reasoning_content") or "") + (delta.get("content") or "")
            if piece and not pieces:
                first = perf_counter() - started
            pieces += [piece] if piece else []
    connection.close()
    assert pieces, "the answer is empty"
    return first, "".join(pieces)


def decode_rate(model: str, num_runs: int) -> float:
    """Tokens a second of one stream."""
    llm = LLM(model)
    rates = []
    for _ in range(num_runs + 1):
        times = []
        for num_tokens in (1, _NUM_TOKENS + 1):
            params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True)
            started = perf_counter()
            llm.generate("What is 47 + 85?", params)
            times.append(perf_counter() - started)
        rates.append(_NUM_TOKENS / (times[1] - times[0]))
    llm.close()
    return statistics.median(rates[1:])


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table and append one JSON line. Fails when a limit is missed."""
    parser = argparse.ArgumentParser(prog="python -m mimo_engine.bench.demo")
    parser.add_argument("model", nargs="?", default=DEMO)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args(arguments)
    runs = [first_token_s(options.model) for _ in range(options.runs)]
    right = _image_request()[1]
    assert options.model != DEMO or {answer for _, answer in runs} == {right}, f"{right}: {runs}"
    first = statistics.median(seconds for seconds, _ in runs)
    rate = decode_rate(options.model, options.runs)
    rows: list[tuple[str, Any, str]] = [
        ("first token of an image question", f"{first:.1f} s", f"< {FIRST_TOKEN_LIMIT_S:.0f} s"),
        ("decode, one stream", f"{rate:.0f} tokens/s", f">= {DECODE_LIMIT:.0f} tokens/s"),
    ]
    for what, value, limit in rows:
        print(f"{what:<36}{value:>16}{limit:>20}")
    print(f"the answer: {runs[0][1]!r}")
    results = {"first_token_s": round(first, 2), "decode_tokens_per_s": round(rate, 1)}
    append_result("demo", {"config": {"model": options.model}, **results})
    assert first < FIRST_TOKEN_LIMIT_S, "too slow to start"
    assert rate >= DECODE_LIMIT, "too slow to speak"


if __name__ == "__main__":
    main()
