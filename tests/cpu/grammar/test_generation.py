"""Grammars through the whole engine, on random weights, which know nothing of JSON."""

import itertools
import json
import re
from dataclasses import replace

import jsonschema
import pytest
from test_tool_grammar import DEFS, POINT, PROPERTIES, check_calls, tool

from mimo_engine import LLM, SamplingParams
from mimo_engine.config.engine import CacheConfig, SchedulerConfig
from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.errors import RequestError
from mimo_engine.grammar.tool_grammar import tool_grammar

SHORT = {"type": "string", "maxLength": 12}
SCHEMAS = [
    {"type": "object"},
    {"enum": ["red", "green", 3, None, True, {"a": [1]}, 'naïve "quoted"']},
    {"type": "integer", "minimum": -17, "maximum": 4711},
    {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 99.25},
    {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    {"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 6},
    {"type": "array", "prefixItems": [SHORT, {"type": "integer"}], "minItems": 2, "items": False},
    {"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}(/[a-z]+)?$", "maxLength": 20},
    {"type": "string", "minLength": 4, "maxLength": 9},
    {"type": "string", "enum": ["你好", "Größe", "a\tb\n", '\\ " /']},
    {"anyOf": [{"type": "null"}, SHORT, {"type": "array", "items": SHORT, "maxItems": 2}]},
    {
        "type": "object",
        "properties": {
            "name": SHORT,
            "age": {"type": "integer"},
            "tags": {"type": ["null", "array"], "items": SHORT, "maxItems": 3},
        },
        "required": ["name", "tags"],
        "additionalProperties": False,
    },
    {
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
        "$defs": DEFS,
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "value": {"enum": ["x", "y"]},
                    "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}, "maxItems": 1},
                },
                "required": ["value", "children"],
                "additionalProperties": False,
            }
        },
    },
    {
        "type": "object",
        "properties": {"kind": {"const": "circle"}, "r": {"type": "number", "minimum": 0}},
        "required": ["kind", "r"],
        "additionalProperties": False,
    },
    {
        "anyOf": [
            {
                "type": "object",
                "properties": {"kind": {"const": kind}, "at": POINT},
                "required": ["kind", "at"],
                "additionalProperties": False,
            }
            for kind in ("circle", "square", "line")
        ]
    },
    {
        "type": "object",
        "additionalProperties": {"type": "integer"},
        "minProperties": 1,
        "maxProperties": 3,
    },
    {"type": "string", "format": "date"},
    {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
            {"properties": {"b": SHORT}, "required": ["b"]},
        ],
        "additionalProperties": False,
        "properties": {"a": True, "b": True},
    },
    {
        "type": "array",
        "items": {"type": "array", "items": {"enum": [0, 1]}, "minItems": 3, "maxItems": 3},
        "minItems": 3,
        "maxItems": 3,
    },
]


def json_spec(schema):
    return GrammarSpec(kind="json_schema", text=json.dumps(schema))


def answer_of(output):
    """The text after the thought, if there is one."""
    _, tag, answer = output.text.partition("</think>")
    return answer if tag else output.text


@pytest.mark.parametrize("count", [24, pytest.param(500, marks=pytest.mark.prove)])
def test_answers_under_a_schema_are_valid_or_cut_by_their_length(llm, thinking, count):
    cases = list(itertools.islice(itertools.cycle(enumerate(SCHEMAS)), count))
    params = [
        SamplingParams(
            temperature=1.5,
            seed=i,
            max_tokens=600,
            grammar=json_spec(schema),
            thinking=thinking(budget=(8, 30)[i % 2]) if i // len(SCHEMAS) % 2 else None,
        )
        for i, (_, schema) in enumerate(cases)
    ]
    prompts = [[(7 * i + j) % 200 for j in range(5)] for i in range(count)]
    outputs = llm.generate(prompts, params)
    num_cut = num_thoughts = 0
    for output, (_, schema) in zip(outputs, cases, strict=True):
        num_thoughts += output.text.startswith("<think>")
        if output.finish_reason == "length":
            num_cut += 1
            continue
        assert output.finish_reason == "stop", output.error
        jsonschema.validate(json.loads(answer_of(output)), schema)
    assert num_cut <= max(1, count * 0.02)
    assert count < 500 or num_thoughts


TOOLS = [
    tool(
        "edit",
        properties={
            key: PROPERTIES[key]
            for key in ("unit", "code", "few", "maybe", "mixed", "level", "points", "name")
        },
        required=["unit", "code", "points"],
    ),
    tool("look", properties={"at": {"$ref": "#/$defs/point"}}),
]


@pytest.mark.parametrize("count", [8, pytest.param(200, marks=pytest.mark.prove)])
@pytest.mark.parametrize("thinks", [False, True])
def test_a_required_tool_call_is_always_valid(llm, thinking, thinks, count):
    params = [
        SamplingParams(
            temperature=1.5,
            seed=i,
            max_tokens=900,
            # One of two tools, or one that is named.
            grammar=tool_grammar(TOOLS[: 1 + i % 2], parallel=False),
            thinking=thinking(budget=10) if thinks else None,
            skip_special_tokens=False,
        )
        for i in range(count)
    ]
    for output in llm.generate([[1, 2, 3]] * count, params):
        assert output.finish_reason == "stop", output.error
        text = answer_of(output).removesuffix("<|im_end|>")
        assert len(check_calls(text, TOOLS)) == 1


MIXED = [
    *(json_spec(SCHEMAS[i]) for i in (2, 5, 11, 13)),
    None,
    GrammarSpec(kind="regex", text="(ab|c){40,60}"),
    GrammarSpec(kind="lark", text='start: "x" ("," "y")*'),
]


def test_chunks_preemption_and_company_change_no_output(model_dir, llm, thinking):
    # Greedy: another batch may round a logit differently, which a draw can just see.
    params = [
        SamplingParams(
            temperature=0.0,
            max_tokens=50,
            grammar=grammar,
            thinking=thinking(20) if i % 2 else None,
            logit_bias={thinking().start_id: 100.0} if i % 4 == 1 else {},
        )
        for i, grammar in enumerate(MIXED * 2)
    ]
    prompts = [[(3 * i + j) % 250 for j in range(20 + 5 * i)] for i in range(len(params))]
    alone = [llm.generate([p], own)[0].token_ids for p, own in zip(prompts, params, strict=True)]
    together = [output.token_ids for output in llm.generate(prompts, params)]
    assert together == alone
    crowded = LLM(
        str(model_dir),
        device="cpu",
        scheduler=SchedulerConfig(max_num_batched_tokens=16, max_num_seqs=8, max_model_len=256),
        cache=CacheConfig(kv_cache_gib=0.02),
    )
    assert [output.token_ids for output in crowded.generate(prompts, params)] == alone
    assert crowded.core.stats().num_preemptions > 0


def test_each_of_n_draws_its_own_and_a_seed_repeats_them(llm):
    params = SamplingParams(temperature=1.5, n=4, seed=5, max_tokens=60, grammar=json_spec(SHORT))
    first, second = ([o.token_ids for o in llm.generate("a", params)] for _ in range(2))
    assert first == second
    assert len({tuple(ids) for ids in first}) == 4


def test_logprobs_under_a_grammar_are_those_of_free_text(llm):
    spec = GrammarSpec(kind="regex", text="[a-z]{12}")
    free = SamplingParams(temperature=0.0, max_tokens=1, logprobs=3)
    [output] = llm.generate([[1, 2, 3]], replace(free, max_tokens=20, grammar=spec))
    assert output.logprobs is not None
    for place, score in enumerate(output.logprobs):
        [alone] = llm.generate([[1, 2, 3, *output.token_ids[:place]]], free)
        assert alone.logprobs is not None
        assert [t for t, _ in score.top] == [t for t, _ in alone.logprobs[0].top]
        assert score.token_id == output.token_ids[place]
        assert score.logprob <= score.top[0][1]


def test_the_budget_closes_a_thought_without_a_grammar_too(llm, tokenizer, thinking):
    spec = thinking(budget=6)
    # Begins to think in any case, and would not stop by itself.
    bias = {spec.start_id: 100.0, spec.end_id: -100.0}
    params = SamplingParams(
        temperature=1.0, seed=1, max_tokens=12, thinking=spec, logit_bias=bias, ignore_eos=True
    )
    [output] = llm.generate([[1, 2]], params)
    assert output.token_ids[:6] == [spec.start_id] * 6
    assert output.token_ids[6] == spec.end_id


def test_a_complete_grammar_ends_the_output_whatever_min_tokens_says(llm):
    params = SamplingParams(
        temperature=1.0, seed=1, max_tokens=40, min_tokens=30, grammar=json_spec({"const": "ab"})
    )
    [output] = llm.generate("x", params)
    assert (output.text, output.finish_reason) == ('"ab"', "stop")
    longer = replace(params, grammar=GrammarSpec(kind="regex", text="a*"))
    [output] = llm.generate("x", longer)
    assert len(output.token_ids) > 30
    assert re.fullmatch("a*", output.text)


def test_with_ignore_eos_only_end_tokens_follow_a_grammars_end(llm, tokenizer):
    params = SamplingParams(
        temperature=1.0, max_tokens=12, ignore_eos=True, grammar=json_spec({"const": 1})
    )
    [output] = llm.generate("x", params)
    assert (output.text, output.finish_reason, len(output.token_ids)) == ("1", "length", 12)
    assert set(output.token_ids[1:]) <= set(tokenizer.stop_token_ids())


def test_a_bad_grammar_is_refused_before_anything_runs(llm):
    with pytest.raises(RequestError, match="regular expression"):
        llm.generate("x", SamplingParams(grammar=GrammarSpec(kind="regex", text="(")))
    assert not llm.core.has_work


def test_a_grammar_that_fails_while_it_runs_ends_its_request_alone(llm):
    rules = "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60))
    doubling = GrammarSpec(kind="lark", text=f'start: r0\n{rules}r60: "a"')
    params = [
        SamplingParams(max_tokens=5, grammar=doubling),
        SamplingParams(max_tokens=30, grammar=json_spec({"const": "fine"})),
    ]
    failed, fine = llm.generate(["x", "x"], params)
    assert failed.finish_reason == "error"
    assert "make it simpler" in failed.error
    assert fine.text == '"fine"'
    assert llm.core.stats().full_pages_used == 0
