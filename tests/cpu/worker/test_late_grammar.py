"""A grammar that takes long, to compile or to follow, delays its own request and no other."""

import threading

import pytest

from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig
from mimo_engine.config.sampling import GrammarSpec
from mimo_engine.messages import NewRequest
from mimo_engine.worker import masks

SLOW = SamplingParams(
    temperature=0.0,
    max_tokens=60,
    grammar=GrammarSpec(kind="regex", text="(yes|no|maybe)( (yes|no|maybe)){3}"),
)
PLAIN = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
# 16 and 17 tokens: the row that is computed again begins a page, and does not.
PROMPTS = {"slow-16": list(range(16)), "slow-17": list(range(30, 47)), "plain": [7, 8, 9]}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("late") / "model"
    assert main(["random-checkpoint", str(path)]) == 0
    return str(path)


def load(checkpoint):
    return LLM(checkpoint, device="cpu", cache=CacheConfig(page_size=16, prefix_caching=False))


@pytest.fixture(scope="module")
def expected(checkpoint):
    llm = load(checkpoint)
    return {
        name: llm.generate([ids], PLAIN if name == "plain" else SLOW)[0].token_ids
        for name, ids in PROMPTS.items()
    }


def step(llm, tokens):
    for output in llm.core.step():
        assert output.finish_reason != "error", output.error
        tokens[output.request_id] += output.token_ids


def test_other_requests_go_on_while_a_grammar_is_compiled(checkpoint, expected, monkeypatch):
    compiled, make_constraint = threading.Event(), masks.make_constraint

    def slowly(*arguments):
        assert compiled.wait(60)
        return make_constraint(*arguments)

    monkeypatch.setattr(masks, "make_constraint", slowly)
    llm = load(checkpoint)
    tokens = {name: [] for name in PROMPTS}
    try:
        for name, ids in PROMPTS.items():
            params = PLAIN if name == "plain" else SLOW
            llm.core.add(NewRequest(request_id=name, prompt_token_ids=ids, params=params))
        for _ in range(20):
            step(llm, tokens)
        assert tokens == {"slow-16": [], "slow-17": [], "plain": expected["plain"]}
        assert llm.core.abort("slow-17")
    finally:
        compiled.set()
    llm.core.add(NewRequest(request_id="slow-17", prompt_token_ids=PROMPTS["slow-17"], params=SLOW))
    while llm.core.has_work:
        step(llm, tokens)
    assert tokens == expected
    stats = llm.core.stats()
    assert (stats.full_pages_used, stats.sliding_pages_used) == (0, 0)


@pytest.fixture
def gate(expected, monkeypatch):
    """The mask after the second token of "slow-16" is not made before it is opened."""
    opened, make = threading.Event(), masks._masks

    def slowly(compiled, own):
        state = own.state
        if state.token_ids[:16] == PROMPTS["slow-16"] and len(state.token_ids) == 18:
            assert opened.wait(60)
        return make(compiled, own)

    monkeypatch.setattr(masks, "_masks", slowly)
    monkeypatch.setattr(masks, "_PATIENCE_S", 0.01)
    # One thread for all masks.
    monkeypatch.setattr(masks, "_MAX_THREADS", 1)
    yield opened
    opened.set()


def test_other_requests_go_on_while_a_mask_is_made(checkpoint, expected, gate):
    llm = load(checkpoint)
    tokens = {name: [] for name in PROMPTS}
    for name, ids in PROMPTS.items():
        params = PLAIN if name == "plain" else SLOW
        llm.core.add(NewRequest(request_id=name, prompt_token_ids=ids, params=params))
    while len(tokens["plain"]) < 12 or len(tokens["slow-16"]) < 2:
        step(llm, tokens)
    for _ in range(3):
        step(llm, tokens)
    assert tokens["slow-16"] == expected["slow-16"][:2]
    gate.set()
    while llm.core.has_work:
        step(llm, tokens)
    assert tokens == expected


def test_a_mask_that_takes_too_long_ends_its_request_and_none_that_waits_behind_it(
    checkpoint, expected, gate, monkeypatch
):
    monkeypatch.setattr(masks, "_LONGEST_MASK_S", 0.5)
    llm = load(checkpoint)
    tokens = {name: [] for name in PROMPTS}
    errors = {}
    for name, ids in PROMPTS.items():
        params = PLAIN if name == "plain" else SLOW
        llm.core.add(NewRequest(request_id=name, prompt_token_ids=ids, params=params))
    while llm.core.has_work:
        for output in llm.core.step():
            tokens[output.request_id] += output.token_ids
            if output.error:
                errors[output.request_id] = output.error
    assert list(errors) == ["slow-16"]
    assert "too long to follow" in errors["slow-16"]
    assert tokens == {**expected, "slow-16": expected["slow-16"][:2]}
    stats = llm.core.stats()
    assert (stats.full_pages_used, stats.sliding_pages_used) == (0, 0)
