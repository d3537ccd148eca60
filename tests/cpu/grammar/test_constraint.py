"""Thinking, then a grammar: each mask equals one that is computed from the whole output anew."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimo_engine.config.sampling import GrammarSpec, SamplingParams
from mimo_engine.grammar.constraint import make_constraint

ABC = GrammarSpec(kind="regex", text="(ab|c){1,3}")
TEXT = "abc c"


def allowed(mask, num_tokens):
    if mask is None:
        return set(range(num_tokens))
    bits = int.from_bytes(mask, "little")
    assert bits >> num_tokens == 0
    return {token_id for token_id in range(num_tokens) if bits >> token_id & 1}


def naive(params, compiler, output):
    """The tokens that may follow `output`, by the words of ThinkingSpec; None: no output."""
    everything = set(range(compiler.num_tokens))
    thinking, answer = params.thinking, list(output)
    is_open = thinking is not None and thinking.is_open
    if is_open or (thinking is not None and output[:1] == [thinking.start_id]):
        first = 0 if is_open else 1
        closing = (thinking.end_id, thinking.call_id)
        end = next((i for i in range(first, len(output)) if output[i] in closing), None)
        if end is None:
            inside = output[first:]
            ends = compiler.end_ids if params.grammar else set()
            banned = ({*thinking.banned_ids} | ends) - {thinking.end_id}
            budget = thinking.budget
            if banned & set(inside) or (budget is not None and len(output) > max(budget, first)):
                return None
            is_spent = budget is not None and len(output) >= budget
            return {thinking.end_id} if is_spent else everything - banned
        if output[end] not in (naive(params, compiler, output[:end]) or ()):
            return None
        answer = output[end + 1 :]
    may_think = thinking is not None and not output and not is_open
    if params.grammar is None:
        return everything
    matcher = compiler.matcher(params.grammar)
    if not all(matcher.accept(token_id) for token_id in answer):
        return None
    return allowed(matcher.mask(), compiler.num_tokens) | (
        {thinking.start_id} if may_think else set()
    )


@pytest.mark.parametrize(
    ("grammar", "budget"),
    [(ABC, "none"), (None, 4), (None, "4 and calls"), (ABC, 4), (ABC, 0), (ABC, None)],
)
@pytest.mark.parametrize("is_open", [False, True])
@given(data=st.data())
def test_masks_are_those_of_the_output_whatever_copies_walk_to(
    data, grammar, budget, is_open, thinking, compiler, tokenizer
):
    spec = None if budget == "none" else replace(thinking(budget), is_open=is_open)
    if budget == "4 and calls":
        spec = replace(
            thinking(4, banned=()), is_open=is_open, call_id=tokenizer.id_of("<tool_call>")
        )
    params = SamplingParams(grammar=grammar, thinking=spec)
    constraint = make_constraint(params, compiler)
    assert constraint is not None
    tags = [tokenizer.id_of(name) for name in ("<think>", "</think>", "<tool_call>", "<|im_end|>")]
    tokens = st.sampled_from([*tags, *tokenizer.encode(TEXT)])
    output: list[int] = []
    # Before each token of the output: drafts go on from a copy and are dropped.
    earlier = []
    for step in data.draw(st.lists(st.one_of(tokens, st.integers(-4, -1)), max_size=25)):
        if step < 0:
            count = min(-step, len(output))
            if count:
                constraint = earlier[-count]
                del earlier[-count:], output[-count:]
        else:
            before = naive(params, compiler, output)
            other = constraint.copy()
            assert constraint.accept(step) == (step in before)
            if step in before:
                output.append(step)
                earlier.append(other)
        assert constraint.num_accepted == len(output)
        assert allowed(constraint.mask(), compiler.num_tokens) == naive(params, compiler, output)


def test_the_first_token_begins_a_thought_or_the_answer(compiler, tokenizer, thinking):
    constraint = make_constraint(SamplingParams(grammar=ABC, thinking=thinking()), compiler)
    first = allowed(constraint.mask(), compiler.num_tokens)
    assert tokenizer.id_of("<think>") in first
    assert tokenizer.encode("c")[0] in first
    assert tokenizer.id_of("</think>") not in first
    assert not first & compiler.end_ids
    assert constraint.accept(tokenizer.encode("c")[0])
    assert tokenizer.id_of("<think>") not in allowed(constraint.mask(), compiler.num_tokens)


def test_a_spent_budget_leaves_only_the_end_of_the_thought(compiler, tokenizer, thinking):
    constraint = make_constraint(SamplingParams(thinking=thinking(budget=3)), compiler)
    for name in ("<think>", "<think>", "<think>"):
        assert constraint.accept(tokenizer.id_of(name))
    end = tokenizer.id_of("</think>")
    assert allowed(constraint.mask(), compiler.num_tokens) == {end}
    assert not constraint.accept(tokenizer.id_of("<think>"))
    assert constraint.accept(end)
    assert constraint.mask() is None


def test_a_call_inside_a_thought_ends_it_and_no_budget_cuts_the_call(compiler, tokenizer, thinking):
    call, other = tokenizer.id_of("<tool_call>"), tokenizer.encode("z")[0]
    spec = replace(thinking(budget=3, banned=()), call_id=call)
    constraint = make_constraint(SamplingParams(thinking=spec), compiler)
    for token_id in (tokenizer.id_of("<think>"), other):
        assert constraint.accept(token_id)
    thought = constraint.copy()
    for token_id in (call, other, other, other):
        assert constraint.accept(token_id)
        assert constraint.num_accepted < 3 or constraint.mask() is None
    # Without the call, it is a thought still.
    assert thought.accept(other)
    assert not thought.accept(call)
    assert thought.accept(tokenizer.id_of("</think>"))


def test_a_thought_before_a_grammar_cannot_end_the_output(compiler, tokenizer, thinking):
    free = make_constraint(SamplingParams(thinking=thinking(budget=9, banned=())), compiler)
    held = make_constraint(SamplingParams(grammar=ABC, thinking=thinking(banned=())), compiler)
    for constraint in (free, held):
        assert constraint.accept(tokenizer.id_of("<think>"))
    end = tokenizer.id_of("<|im_end|>")
    assert end in allowed(free.mask(), compiler.num_tokens)
    assert end not in allowed(held.mask(), compiler.num_tokens)


def test_a_thought_that_the_prompt_has_begun_is_closed_before_the_answer(
    compiler, tokenizer, thinking
):
    spec = replace(thinking(budget=2), is_open=True)
    constraint = make_constraint(SamplingParams(grammar=ABC, thinking=spec), compiler)
    end, other = tokenizer.id_of("</think>"), tokenizer.encode("z")[0]
    first = constraint.copy()
    for _ in range(2):
        assert not constraint.accept(tokenizer.id_of("<tool_call>"))
        assert constraint.accept(other)
    assert allowed(constraint.mask(), compiler.num_tokens) == {end}
    assert constraint.accept(end)
    assert not constraint.accept(other)
    assert first.accept(end)
    assert first.accept(tokenizer.encode("c")[0])


def test_an_output_that_may_be_anything_has_no_constraint(compiler, thinking):
    for params in (SamplingParams(), SamplingParams(thinking=thinking(banned=()))):
        assert make_constraint(params, compiler) is None
