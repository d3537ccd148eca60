"""What parsing costs: microseconds of `StreamParser.push` a token, at one token a push.

A token is a piece of four characters, which is what source code and English come to. The three
texts are where an agent's output is long: the answer, the thought, and a file as the string
argument of a call. The events are put together again at the end and compared with the text: a fast
parser that loses a character is no result.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from time import perf_counter_ns

from mimo_engine.bench.record import append_result
from mimo_engine.chat.events import Content, Event, Reasoning, ToolCallDelta
from mimo_engine.chat.stream_parser import StreamParser
from mimo_engine.chat.tools import tool_schemas

__all__ = ["Measurement", "main", "measure"]

TOKEN_LEN = 4
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "write",
            "parameters": {"type": "object", "properties": {"content": {"type": "string"}}},
        },
    }
]
# Has what a parser must look at: tags that are none, quotation marks, lines.
LINE = 'if count < len(items) and "<b>" in text:  # a line of source code\n'
FRAMES = {
    "content": ("<think></think>", ""),
    "reasoning": ("<think>", "</think>"),
    "argument": (
        "<think></think><tool_call>\n<function=write>\n<parameter=content>",
        "</parameter>\n</function>\n</tool_call>",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Microseconds of one push, over all `num_tokens` pushes of a text."""

    text: str
    num_tokens: int
    mean_us: float
    median_us: float
    p99_us: float
    max_us: float


def measure(name: str, *, num_tokens: int) -> Measurement:
    """Time the text `name`, one of FRAMES, of about `num_tokens` tokens."""
    before, after = FRAMES[name]
    body = LINE * (num_tokens * TOKEN_LEN // len(LINE) + 1)
    text = before + body + after
    tokens = [text[start : start + TOKEN_LEN] for start in range(0, len(text), TOKEN_LEN)]
    parser = StreamParser(thinking="maybe", tools=tool_schemas(TOOLS))
    pieces: list[str] = []
    nanoseconds: list[int] = []
    gc.collect()
    for token in tokens:
        start = perf_counter_ns()
        added = parser.push(token)
        nanoseconds.append(perf_counter_ns() - start)
        pieces += map(_text, added)
    pieces += map(_text, parser.finish())
    escaped = body.replace('"', '\\"').replace("\n", "\\n")
    expected = f'{{"content": "{escaped}"}}' if name == "argument" else body
    assert "".join(pieces) == expected
    return _summary(name, nanoseconds)


def _text(event: Event) -> str:
    if isinstance(event, Content | Reasoning):
        return event.text
    return event.arguments if isinstance(event, ToolCallDelta) else ""


def _summary(name: str, nanoseconds: Sequence[int]) -> Measurement:
    times_us = sorted(value / 1000 for value in nanoseconds)
    return Measurement(
        text=name,
        num_tokens=len(times_us),
        mean_us=round(sum(times_us) / len(times_us), 2),
        median_us=round(times_us[len(times_us) // 2], 2),
        p99_us=round(times_us[len(times_us) * 99 // 100], 2),
        max_us=round(times_us[-1], 2),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table and append one line to benchmarks/results/parser.jsonl."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--num-tokens", type=int, default=100_000, help="length of each text")
    parser.add_argument("--no-record", action="store_true", help="print only")
    options = parser.parse_args(arguments)
    results = [measure(name, num_tokens=options.num_tokens) for name in FRAMES]
    print("StreamParser.push, one token a push, microseconds a token")
    print(f"{'text':>10}{'tokens':>9}{'mean':>9}{'median':>9}{'p99':>9}{'max':>9}")
    for result in results:
        print(
            f"{result.text:>10}{result.num_tokens:>9}{result.mean_us:>9.2f}"
            f"{result.median_us:>9.2f}{result.p99_us:>9.2f}{result.max_us:>9.1f}"
        )
    if not options.no_record:
        config = {"token_len": TOKEN_LEN}
        payload = {"config": config, "results": [asdict(result) for result in results]}
        path = append_result("parser", payload)
        print(f"appended to benchmarks/results/{path.name}")


if __name__ == "__main__":
    main()
