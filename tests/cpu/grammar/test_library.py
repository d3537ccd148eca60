"""The adapter: masks are exact, ends are ours, and no text that a client sends does harm."""

import json
import subprocess
import sys

import pytest

from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import RequestError
from mimo_engine.grammar.library import MAX_GRAMMAR_BYTES
from mimo_engine.grammar.tool_grammar import tool_grammar


def schema(value):
    return GrammarSpec(kind="json_schema", text=json.dumps(value))


def regex(text):
    return GrammarSpec(kind="regex", text=text)


def lark(text):
    return GrammarSpec(kind="lark", text=text)


def allowed(mask):
    bits = int.from_bytes(mask, "little")
    return {token_id for token_id in range(bits.bit_length()) if bits >> token_id & 1}


def test_a_mask_has_the_tokens_that_continue_the_text_and_no_others(compiler, tokenizer):
    texts = ["abc", "abd", "xyz", "the", "then"]
    matcher = compiler.matcher(regex("|".join(texts)))
    expected = {
        token_id
        for token_id in range(tokenizer.num_tokens)
        if (data := tokenizer.token_bytes(token_id))
        and any(t.encode().startswith(data) for t in texts)
    }
    assert allowed(matcher.mask()) == expected


def test_a_whole_text_may_end_and_after_its_end_nothing_else_comes(compiler, tokenizer):
    first = compiler.matcher(regex("ab?"))
    a, b = (tokenizer.encode(letter)[0] for letter in "ab")
    end = max(compiler.end_ids)
    assert not first.accept(end)
    matcher = first.copy()
    assert matcher.accept(a)
    after_a = matcher.copy()
    assert matcher.is_accepting
    assert not matcher.is_stopped
    assert allowed(matcher.mask()) == {b} | compiler.end_ids
    assert matcher.accept(end)
    assert allowed(matcher.mask()) == compiler.end_ids
    assert not matcher.accept(b)
    assert matcher.accept(min(compiler.end_ids))
    assert allowed(matcher.copy().mask()) == compiler.end_ids
    assert after_a.accept(b)
    assert after_a.is_stopped
    assert allowed(after_a.mask()) == compiler.end_ids
    assert allowed(first.mask()) == {a}


def test_a_refused_token_changes_nothing(compiler, tokenizer):
    matcher = compiler.matcher(schema({"type": "integer"}))
    before = matcher.mask()
    assert not matcher.accept(tokenizer.encode("x")[0])
    assert matcher.mask() == before


def test_free_text_never_has_a_marker_token(compiler, tokenizer):
    markers = {
        tokenizer.id_of(name) for name in ("<think>", "</think>", "<tool_call>", "<|im_start|>")
    }
    assert not allowed(compiler.matcher(regex("(.|\n)*")).mask()) & markers
    only = compiler.matcher(lark("start: <tool_call> /a*/"))
    assert allowed(only.mask()) == {tokenizer.id_of("<tool_call>")}


def test_matchers_of_one_grammar_do_not_share_their_place(compiler, tokenizer):
    one, other = (compiler.matcher(regex("abc")) for _ in range(2))
    assert one.accept(tokenizer.encode("a")[0])
    assert other.mask() != one.mask()


def test_whitespace_in_json_is_bounded(walk):
    spec = schema({"type": "array", "items": {"type": "boolean"}, "maxItems": 2})
    for text in walk(spec, 50):
        assert text is not None
        json.loads(text)
        assert len(text) <= 8 * 26 + 12


def test_a_schema_cannot_change_how_it_is_read(compiler, walk):
    loose = {
        "x-guidance": {"whitespace_pattern": " *", "lenient": True, "item_separator": "x"},
        "type": "array",
        "items": {"type": "boolean"},
        "minItems": 2,
        "maxItems": 2,
    }
    for text in walk(schema(loose), 10):
        assert len(json.loads(text)) == 2
    with pytest.raises(RequestError, match="not"):
        compiler.check(schema({"x-guidance": {"lenient": True}, "not": {"type": "string"}}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (GrammarSpec(kind="json_schema", text="{"), "JSON schema cannot be read"),
        (GrammarSpec(kind="json_schema", text="[1]"), "JSON schema cannot be read"),
        (schema({"type": "strin"}), "strin"),
        (schema({"not": {}}), "not"),
        (schema({"$ref": "#"}), "cannot be enforced"),
        (schema({"$ref": "file:///etc/passwd"}), "cannot be enforced"),
        (schema({"type": "string", "enum": []}), "cannot be enforced"),
        (schema({"type": "string", "pattern": "(?=a)b"}), "cannot be enforced"),
        (regex("(a"), "regular expression cannot be enforced"),
        (regex("a$b"), "regular expression cannot be enforced"),
        (regex("\ud800"), "surrogate"),
        (lark("start: x"), "grammar cannot be enforced"),
        (lark("start: <no_such_token>"), "grammar cannot be enforced"),
        (lark("start: T\nT: T"), "grammar cannot be enforced"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_its_reason(compiler, spec, message):
    for _ in range(2):  # the second time it is remembered
        with pytest.raises(RequestError, match=message):
            compiler.check(spec)


def _chain(count):
    definitions = {f"a{i}": {"items": {"$ref": f"#/d/a{i + 1}"}} for i in range(count)}
    return schema({"$ref": "#/d/a0", "d": {**definitions, f"a{count}": {}}})


def _repetitions(count):
    """Every text of letters, in very many ways."""
    ways = " | ".join(" ".join(["w"] * length) for length in range(2, count))
    return lark(f"start: w\nw: {ways} | /[a-z]/")


def _nullable_endings(count):
    ways = " | ".join(f"w w n{i}" for i in range(count))
    endings = "".join(f'n{i}: "" | "{i}"\n' for i in range(count))
    return lark(f"start: w\nw: {ways} | /[a-z]/\n{endings}")


AMBIGUOUS = {
    **{f"{count} repetitions": _repetitions(count) for count in (8, 60, 240)},
    **{f"{count} nullable endings": _nullable_endings(count) for count in (8, 60, 240)},
    "mutual recursion": lark(
        "start: w0\n"
        + "".join(
            f"w{i}: w{(i + 1) % 30} w{(3 * i + 1) % 30} | w{(7 * i + 2) % 30} | /[a-z]/\n"
            for i in range(30)
        )
    ),
}

HOSTILE = {
    **AMBIGUOUS,
    "nested quantifiers": regex("(((a{1,100}){1,100}){1,100}){1,100}"),
    "a huge repeat": regex("(abc|[x-z]{3,9}){1,100000000}"),
    "nested parentheses": regex("(" * 60_000 + "a" + ")" * 60_000),
    "exponential states": regex(".*a.{40}b.{40}c"),
    "doubling terminals": lark(
        "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "a"'
    ),
    "doubling rules": lark(
        "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60: "a"'
    ),
    "a chain of rules": lark(
        "start: r0\n" + "".join(f'r{i}:"a"r{i + 1}\n' for i in range(8000)) + 'r8000:"a"'
    ),
    "intersections": lark("start: T\nT: /(.*a.{40})/ & ~/(.*b.{40})/ & /(.*c.{40})/"),
    "endless ambiguity": lark('start: x*\nx: y*\ny: start | /a*/ | ""'),
    "a megabyte": schema({"enum": ["x" * 2**20]}),
    "thousands of optional properties": schema(
        {"properties": {f"p{i}": {"type": "string"} for i in range(3000)}}
    ),
    "exponential anyOf": schema(
        {
            "type": "object",
            "allOf": [
                {"anyOf": [{"properties": {f"a{i}": {"const": j}}} for j in range(3)]}
                for i in range(30)
            ],
        }
    ),
    "deep nesting": GrammarSpec(kind="json_schema", text='{"items":' * 9000 + "{}" + "}" * 9000),
    "a chain of references": _chain(3500),
    "doubling references": schema(
        {
            "$ref": "#/d/a0",
            "d": {
                **{f"a{i}": {"allOf": [{"$ref": f"#/d/a{i + 1}"}] * 2} for i in range(40)},
                "a40": {"type": "object"},
            },
        }
    ),
    "a circle of references": schema({"$ref": "#/d/a", "d": {"a": {"$ref": "#/d/a"}}}),
    "multiples": schema({"type": "integer", "multipleOf": 999983, "maximum": 10**15}),
    "many patterns": schema({"allOf": [{"pattern": f"a.{{{i}}}b"} for i in range(1, 20)]}),
    "a billion items": schema({"items": {"type": "integer"}, "minItems": 10**9}),
}

PROGRAM = """
import random, sys
from pathlib import Path
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import RequestError
from mimo_engine.grammar.library import GrammarCompiler

tokenizer = Tokenizer.from_dir(sys.argv[1])
compiler = GrammarCompiler(
    tokenizer.to_json(), num_tokens=tokenizer.num_tokens, end_ids=tokenizer.stop_token_ids()
)
for line in sys.stdin.read().split("\\x00"):
    kind, text = line.split(" ", 1)
    try:
        matcher = compiler.matcher(GrammarSpec(kind=kind, text=text))
        draw = random.Random(0)
        for _ in range(60):
            bits = int.from_bytes(matcher.mask(), "little")
            ids = [i for i in range(tokenizer.num_tokens) if bits >> i & 1]
            matcher.accept(draw.choice(ids))
    except RequestError as error:
        assert str(error)
    # ru_maxrss would be that of the process that started this one, where it was larger.
    status = Path("/proc/self/status").read_text()
    print(status.partition("VmHWM:")[2].split()[0])
"""


def test_hostile_grammars_are_refused_or_stay_bounded(model_dir):
    # In a process of its own: what must not happen is its death, or minutes of work.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(model_dir)],
        input="\0".join(f"{spec.kind} {spec.text}" for spec in HOSTILE.values()),
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    peaks_kb = done.stdout.split()
    assert len(peaks_kb) == len(HOSTILE)
    assert int(peaks_kb[-1]) < 2 * 2**20


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_an_ambiguous_grammar_goes_over_its_limits_at_once_or_after_some_letters(
    compiler, tokenizer, name
):
    def follow():
        matcher = compiler.matcher(AMBIGUOUS[name])
        for letter in "abcdefghij" * 5:
            matcher.mask()
            assert matcher.accept(tokenizer.encode(letter)[0])

    # Before a mask takes long.
    with pytest.raises(RequestError, match="Too many items"):
        follow()


def test_many_optional_properties_are_no_ambiguity(compiler, walk):
    options = {f"p{i}": {"type": "integer"} for i in range(200)}
    whole = {"type": "object", "properties": options, "additionalProperties": False}
    [text] = walk(schema(whole), 1, max_tokens=20_000)
    assert set(json.loads(text)) <= set(options)
    tool = {"name": "f", "parameters": {"properties": {"value": whole}, "required": ["value"]}}
    compiler.check(tool_grammar([{"type": "function", "function": tool}]))


def test_a_grammar_beyond_the_limit_is_refused_unread(compiler):
    compiler.check(regex("a" * 1000))
    with pytest.raises(RequestError, match=f"at most {MAX_GRAMMAR_BYTES}"):
        compiler.check(regex("é" * (MAX_GRAMMAR_BYTES // 2 + 1)))
