"""The stream parser against an implementation that sees the whole text at once.

The reference below works with regular expressions on the complete text and shares no code with the
parser. It types values as Python objects, so that the parser's JSON is compared by its meaning.
"""

import ast
import json
import random
import re

import pytest

from mimo_engine.chat.events import (
    Content,
    Reasoning,
    ToolCallDelta,
    ToolCallEnd,
    ToolCallStart,
    merge_events,
)
from mimo_engine.chat.stream_parser import StreamParser
from mimo_engine.chat.tools import tool_schemas

TYPES = {
    "s": ["string"],
    "s2": ["string"],
    "maybe": ["string", "null"],
    "n": ["integer"],
    "x": ["number"],
    "b": ["boolean"],
    "l": ["array", "null"],
    "o": ["object"],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "parameters": {
                "type": "object",
                "properties": {key: {"type": types} for key, types in TYPES.items()},
            },
        },
    }
    for name in ("run", "write_file")
]
SCHEMAS = tool_schemas(TOOLS)

WS = r"[ \t\r\n]*"
NAME = r"[^<>\n]{1,256}"
FUNC = rf"<function={NAME}>"
PARAM = rf"<parameter={NAME}>"


def partial(*tags):
    """The beginning of one of `tags`, at the end of the text."""
    parts = []
    for tag in tags:
        parts += [re.escape(tag[:n]) for n in range(1, len(tag))]
        if tag.endswith("="):
            parts.append(re.escape(tag) + r"[^<>\n]{0,256}")
    return "(?:" + "|".join(sorted(parts, key=len, reverse=True)) + r")?\Z"


IN_FUNC_TAGS = ("<parameter=", "</function>", "</tool_call>", "<tool_call>", "<function=")
IN_FUNC = rf"(?:{PARAM}|</function>|</tool_call>|<tool_call>|{FUNC})"
CLOSE = rf"(?:</function>{WS})?</tool_call>"
VALUE = re.compile(
    rf"(?P<value>.*?)(?:(?P<end></parameter>)|(?P<newline>\n)(?={PARAM})"
    rf"|(?P<close>\n?(?:{CLOSE}(?:(?={WS}<tool_call>)|(?={WS}{partial('<tool_call>')}))"
    rf"|(?:</function>[ \t\r\n]*?\n)</tool_call>)"
    rf"|\n(?:{CLOSE}|</function>(?={WS}{partial('</tool_call>')}))))",
    re.DOTALL,
)


def matches(pattern, text, at=0):
    return re.compile(pattern, re.DOTALL).match(text, at)


class Reference:
    """Whole text to a list of ("reasoning" | "content", text) and ("call", name, args, state)."""

    def __init__(self, text, thinking, *, tools, rescue):
        self.text, self.tools, self.rescue = text, tools, rescue
        self.out, self.complete, self.incomplete = [], 0, False
        self.stray_dropped = False
        self.plain = thinking == "plain"
        if thinking == "maybe" and (m := matches(rf"{WS}<think>", text)):
            self.reasoning(m.end())
        elif thinking == "maybe" and (m := matches(rf"{WS}</think>", text)):
            self.content(m.end())
        elif thinking == "open":
            self.reasoning(0)
        else:
            self.content(0)

    def add(self, kind, text):
        if text:
            self.out.append((kind, text))

    def call_at(self, at, prefix=WS):
        """(position of `<function=`, or None; whether the text ends within the opening)."""
        if m := matches(rf"{prefix}<tool_call>{WS}(?={FUNC})", self.text, at):
            return m.end(), False
        cut = matches(rf"{prefix}<tool_call>{WS}{partial('<function=')}", self.text, at)
        return None, bool(cut)

    def reasoning(self, at):
        start = at
        while at < len(self.text):
            if self.text.startswith("</think>", at):
                self.add("reasoning", self.text[start:at])
                return self.content(at + len("</think>"))
            if self.tools and self.rescue:
                function, cut = self.call_at(at, "")
                if function is not None or cut:
                    self.add("reasoning", self.text[start:at])
                    self.incomplete = cut
                    return None if cut else self.function(function)
            at += 1
        return self.add("reasoning", self.text[start:])

    def content(self, at):
        region = ""
        while at < len(self.text):
            has_content = region or any(item[0] == "content" for item in self.out)
            may_drop = not (self.plain or self.stray_dropped or has_content)
            if may_drop and self.text.startswith("</think>", at):
                self.stray_dropped = True
                at += len("</think>")
                continue
            if self.tools:
                function, cut = self.call_at(at, "")
                starts_line = not region or region.endswith("\n")
                if starts_line and matches(FUNC, self.text, at):
                    function = at
                if function is not None or cut:
                    self.add("content", region)
                    self.incomplete = cut
                    return None if cut else self.function(function)
            region += self.text[at]
            at += 1
        return self.add("content", region)

    def function(self, at):
        m = matches(rf"<function=({NAME})>", self.text, at)
        args, seen = [], set()
        call = ["call", m[1], args, "cut"]
        self.out.append(call)
        at = m.end()
        while True:
            if matches(WS + partial(*IN_FUNC_TAGS), self.text, at):
                self.incomplete = True
                return None
            m = matches(rf"{WS}({IN_FUNC})", self.text, at)
            if m is None:
                m = matches(rf"(.*?)(?={IN_FUNC})", self.text, at)
                self.add("content", m[1] if m else self.text[at:])
                if m is None:
                    self.incomplete = True
                    return None
                at = m.end()
                continue
            if not m[1].startswith("<parameter="):
                call[3] = "complete"
                self.complete += 1
                closed = False
                at = m.end() if m[1] == "</function>" else m.start(1)
                return self.after(at, closed)
            at, early_close = self.parameter(call, m[1], m.end(), seen)
            if at is None:
                self.incomplete = True
                return None
            if early_close is not None:
                call[3] = "complete"
                self.complete += 1
                return self.after(at, early_close)

    def parameter(self, call, tag, at, seen):
        """(position after the value, None or whether `</tool_call>` ended it)."""
        key = tag[len("<parameter=") : -1]
        repeated = key in seen
        seen.add(key)
        m = VALUE.match(self.text, at)
        raw = m["value"] if m else self.text[at:]
        if repeated:
            self.add("content", tag + raw + (m["end"] or "" if m else ""))
        elif m:
            call[2].append((key, typed(raw, self.types(call[1], key))))
        else:
            call[2].append((key, raw))
            types = self.types(call[1], key)
            call[3] = "cut string" if "string" in types else "cut typed"
            if set(types) == {"string", "null"} and not raw:
                call[3] = "cut typed"
        if repeated and not m and call[2]:
            call[3] = "cut"
        if m is None:
            return None, None
        if m["close"] is not None:
            return m.end(), "</tool_call>" in m["close"]
        return m.end(), None

    def types(self, name, key):
        return TYPES.get(key, ["string"]) if name in ("run", "write_file") else ["string"]

    def after(self, at, closed):
        if not closed and (m := matches(rf"{WS}</tool_call>", self.text, at)):
            at, closed = m.end(), True
        if m := matches(rf"{WS}(?={FUNC})", self.text, at):
            return self.function(m.end())
        function, cut = self.call_at(at)
        if function is not None:
            return self.function(function)
        if cut:
            self.incomplete = True
            return None
        tags = ("</tool_call>", "<tool_call>", "<function=")
        if not closed and matches(WS + partial(*tags), self.text, at):
            return None
        return self.content(at)


def typed(raw, types):
    if "string" in types:
        return None if "null" in types and raw in ("null", "None") else raw
    stripped = raw.strip()
    for name in ("null", "boolean", "integer", "number", "object", "array"):
        if name not in types:
            continue
        if name == "null" and stripped.lower() in ("null", "none"):
            return None
        if name == "boolean" and stripped.lower() in ("true", "false"):
            return stripped.lower() == "true"
        if name == "integer" and re.fullmatch(r"-?[0-9]+(\.0+)?", stripped):
            return int(stripped.split(".")[0])
        if name == "number" and re.fullmatch(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?", stripped):
            return json.loads(stripped)
        if name in ("object", "array"):
            for read in (json.loads, ast.literal_eval):
                try:
                    value = read(stripped)
                except (ValueError, SyntaxError):
                    continue
                if isinstance(value, dict if name == "object" else list):
                    return value
    return raw


def merged(out):
    result = []
    for item in out:
        if item[0] != "call" and result and result[-1][0] == item[0]:
            result[-1] = (item[0], result[-1][1] + item[1])
        else:
            result.append(tuple(item))
    return result


def parse(text, cuts, **options):
    spans = []
    parser = StreamParser(spans=spans, **options)
    events = []
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        events += parser.push(text[start:end])
    events += parser.finish()
    return merge_events(events), spans, parser


def check_events(events, reference):
    """The calls' arguments may be interrupted by content: they are compared call by call."""
    texts, calls = [], []
    for event in events:
        if isinstance(event, ToolCallStart):
            assert event.index == len(calls)
            calls.append([event.name, "", False])
            texts.append(("call", event.index))
        elif isinstance(event, ToolCallDelta):
            assert event.index == len(calls) - 1
            assert not calls[-1][2]
            calls[-1][1] += event.arguments
        elif isinstance(event, ToolCallEnd):
            assert event.index == len(calls) - 1
            calls[-1][2] = True
        elif isinstance(event, Content):
            texts.append(("content", event.text))
        else:
            assert isinstance(event, Reasoning)
            texts.append(("reasoning", event.text))
    expected_calls = [item for item in reference.out if item[0] == "call"]
    number = iter(range(len(expected_calls)))
    expected = [("call", next(number)) if i[0] == "call" else tuple(i) for i in reference.out]
    assert merged(texts) == merged(expected)
    assert len(calls) == len(expected_calls)
    for (name, arguments, ended), (_, wanted, args, state) in zip(
        calls, expected_calls, strict=True
    ):
        assert name == wanted
        assert ended == (state == "complete")
        check_arguments(arguments, args, state)


def check_arguments(arguments, args, state):
    if not args and state != "complete":
        assert arguments == ""
        return
    if state == "cut typed":
        args = [*args[:-1], (args[-1][0], None)]
    closing = {"complete": "", "cut": "}", "cut string": '"}', "cut typed": "null}"}[state]
    read = json.loads(arguments + closing, object_pairs_hook=Pairs)
    assert read == [(key, pairs_in(value)) for key, value in args]


class Pairs(list):
    """An object of JSON, with its order and any repeated key."""


def pairs_in(value):
    if isinstance(value, dict):
        return [(key, pairs_in(item)) for key, item in value.items()]
    return [pairs_in(item) for item in value] if isinstance(value, list) else value


def check_spans(text, events, spans):
    assert "".join(span.text for span in spans) == text
    for kind, event_type in (("content", Content), ("reasoning", Reasoning)):
        kept = "".join(span.text for span in spans if span.kind == kind)
        assert kept == "".join(event.text for event in events if isinstance(event, event_type))
    for span in spans:
        if span.kind == "whitespace":
            assert not span.text.strip(" \t\r\n")
        elif span.kind == "tag":
            assert span.text.startswith("<")


def check(text, rng, *, thinking="maybe", tools=True, rescue=True, every_cut=False):
    options = {
        "thinking": thinking,
        "tools": SCHEMAS if tools else None,
        "tool_call_in_thinking": "rescue" if rescue else "leave",
    }
    reference = Reference(text, thinking, tools=tools, rescue=rescue)
    whole, spans, parser = parse(text, [], **options)
    check_events(whole, reference)
    check_spans(text, whole, spans)
    assert parser.num_complete_calls == reference.complete
    assert parser.has_incomplete_call == reference.incomplete
    chunkings = [list(range(1, len(text)))]
    if every_cut:
        chunkings += [[cut] for cut in range(1, len(text))]
    for _ in range(2):
        count = rng.randrange(min(len(text), 12) + 1) if len(text) > 1 else 0
        chunkings.append(sorted(rng.choices(range(len(text) + 1), k=count)))
    for cuts in chunkings:
        events, spans, _ = parse(text, cuts, **options)
        assert events == whole
        check_spans(text, events, spans)


TAGS = [
    *("<think>", "</think>", "<tool_call>", "</tool_call>", "<function=run>", "</function>"),
    *("<parameter=s>", "<parameter=n>", "<parameter=maybe>", "<parameter=zz>", "</parameter>"),
]
PIECES = [
    *("a", "Hi. ", "\n", " ", "\r\n", "\t", "<", ">", "</", "<<", "=", "if a < b:", '"', "\\", "'"),
    *("&lt;", "null", "None", "007", "é", "e\u0301", "😀", "👩\u200d👩", "\u2028", "\x00", "\x0b"),
    *("<function=", "<parameter=", "<function=a b>", "<parameter=>", "<b>", "</b>", "<tool"),
]
VALUES = {
    "n": ["5", "-3", "007", "2.0", "3.5", " 12\n", "x", "", "12345678901234567890123"],
    "x": ["0.5", "2", "-1.25", "1_0", "nan"],
    "b": ["True", "false", "TRUE", "1", ""],
    "l": ["[1, 2]", "['a', True, None]", '["é"]', "null", "None", "[", "(1)", "{}"],
    "o": ['{"a": 1}', "{'a': {'b': [False]}}", "{}", '\n{"a": "<b>"}\n', "[]", "{'a'}"],
}


def noise(rng, most):
    return "".join(rng.choice(PIECES) for _ in range(rng.randrange(most)))


def soup(rng):
    """Tags and text in any order."""
    return "".join(
        rng.choice(TAGS if rng.random() < 0.6 else PIECES) for _ in range(rng.randrange(1, 30))
    )


def value(rng, key):
    if key in VALUES and rng.random() < 0.9:
        return rng.choice(VALUES[key])
    if rng.random() < 0.2:
        return rng.choice(["null", "None", "nul", "Nonesuch", "", "\n"])
    return "".join(
        rng.choice([tag for tag in TAGS if tag != "</parameter>"])
        if rng.random() < 0.25
        else rng.choice(PIECES)
        for _ in range(rng.randrange(8))
    )


def call(rng):
    newline = "\n" if rng.random() < 0.6 else ""
    text = f"<tool_call>{newline}<function={rng.choice(['run', 'write_file', 'other'])}>{newline}"
    for _ in range(rng.randrange(4)):
        key = rng.choice([*TYPES, "unknown key"])
        closing = rng.choice(["", "\n"]) if rng.random() < 0.1 else "</parameter>"
        text += f"<parameter={key}>{value(rng, key)}{closing}{newline}"
        if rng.random() < 0.05:
            text += noise(rng, 4)
    if rng.random() < 0.9:
        text += "</function>" + newline
    return text + ("</tool_call>" if rng.random() < 0.9 else "")


def transcript(rng):
    """What a model writes, with its mistakes, perhaps cut short."""
    text = rng.choice(["", "", "\n", "  "])
    if rng.random() < 0.6:
        text += "<think>" + noise(rng, 8)
        if rng.random() < 0.9:
            text += "</think>"
    text += noise(rng, 5)
    for _ in range(rng.randrange(4)):
        text += call(rng) + rng.choice(["", "", "\n", "\n\n", noise(rng, 4)])
    if rng.random() < 0.3:
        text = text[: rng.randrange(len(text) + 1)]
    return text


def fuzz(seeds):
    for seed in seeds:
        rng = random.Random(seed)
        text = soup(rng) if seed % 3 == 0 else transcript(rng)
        options = {
            "thinking": rng.choice(["maybe", "maybe", "open", "off", "plain"]),
            "tools": rng.random() < 0.9,
            "rescue": rng.random() < 0.8,
        }
        try:
            check(text, rng, **options)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {text!r} {options}\n{error}") from error


def test_a_sample_of_transcripts_parses_as_the_reference_does():
    fuzz(range(800))


@pytest.mark.prove
def test_twenty_thousand_transcripts_parse_as_the_reference_does():
    fuzz(range(20_000))


FULL = (
    "\n<think>Two calls, a < b.</think>Checking 😀.<tool_call>\n<function=run>\n"
    "<parameter=s>x = '</tool_call>'\n</function>\n&lt;<tool_call></parameter>\n"
    "<parameter=n>007</parameter>\n<parameter=maybe>None</parameter>\n"
    "<parameter=l>['e\u0301', None]</parameter>\n</function>\n</tool_call>\n<tool_call>"
    "<function=write_file><parameter=s>1</function></tool_call>\n"
)


@pytest.mark.parametrize("thinking", ["maybe", "open", "off", "plain"])
def test_a_transcript_cut_anywhere_and_pushed_in_two_parts_cut_anywhere(thinking):
    for end in range(len(FULL) + 1):
        check(FULL[:end], random.Random(end), thinking=thinking, every_cut=end % 8 == 0)
