"""The loop guard is its definition, found while tokens come; and what is no loop is left alone."""

import random
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_corpus import KINDS, document

from mimo_engine.chat.loop_guard import MAX_PERIOD, Loop, LoopGuard, bound
from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.utils.hub import resolve_model

PERIODS = np.arange(1, MAX_PERIOD + 1)
WANTED = np.array([bound(period) - period for period in PERIODS.tolist()])
EDGES = [1, 2, 3, 31, 32, 33, 63, 64, 65, 96, 97, 127, 128, 129, 255, 256, 257, 511, 512, 513]
EDGES += [1000, 1023, 1024, 1025, 1536, 2047, 2048]


def defined(ids):
    """The first loop by definition: every period is looked at for every token."""
    ids = np.array(ids)
    num_repeating = np.zeros(MAX_PERIOD, dtype=int)
    for place, token in enumerate(ids):
        before = ids[max(0, place - MAX_PERIOD) : place][::-1]
        equal = np.zeros(MAX_PERIOD, dtype=bool)
        equal[: len(before)] = before == token
        num_repeating = np.where(equal, num_repeating + 1, 0)
        found = np.flatnonzero(num_repeating >= WANTED)
        if len(found):
            return Loop(int(PERIODS[found[0]]), place + 1)
    return None


def found(ids, sizes=(1,)):
    """The guard's, of ids that come in updates of these sizes, over and over."""
    guard, left, turn = LoopGuard(), iter(ids), 0
    while update := list(islice(left, sizes[turn % len(sizes)])):
        loop = guard.push(update)
        if loop is not None:
            return loop
        turn += 1
    return None


def unit(draw, period, num_kinds):
    return [draw.randrange(num_kinds) for _ in range(period)]


@st.composite
def outputs(draw):
    """Repeated units of all lengths, whole, broken, nested and cut, with other tokens between."""
    source = draw(st.randoms(use_true_random=False))
    ids = []
    for _ in range(draw(st.integers(1, 4))):
        period = draw(st.sampled_from(EDGES[:16]) | st.integers(1, 300))
        block = unit(source, period, draw(st.sampled_from([1, 2, 3, 150_000])))
        if draw(st.booleans()):
            block = block * draw(st.integers(1, 3)) + block[: draw(st.integers(0, 20))]
        least = bound(len(block))
        length = draw(st.sampled_from([least - 1, least, least + 1]) | st.integers(1, least))
        run = (block * (length // len(block) + 1))[:length]
        if draw(st.booleans()):
            run[draw(st.integers(0, length - 1))] += 1
        ids += run + unit(source, draw(st.integers(0, 70)), 3)
    return ids


def check_against_definition(ids, sizes):
    assert found(ids, sizes) == defined(ids)


SIZES = st.lists(st.integers(1, 40), min_size=1, max_size=3)


@settings(max_examples=150, deadline=None)
@given(outputs(), SIZES)
def test_the_loop_found_is_the_first_by_definition(ids, sizes):
    check_against_definition(ids, sizes)


@pytest.mark.prove
@settings(max_examples=3000, deadline=None)
@given(outputs(), SIZES)
def test_the_loop_found_is_the_first_by_definition_in_thousands(ids, sizes):
    check_against_definition(ids, sizes)


@pytest.mark.parametrize("period", EDGES)
@pytest.mark.parametrize("preamble", [0, 1, 700])
def test_a_replayed_loop_is_found_at_its_bound(period, preamble):
    draw = random.Random(period)
    # Different tokens, so that the unit has no smaller period and the preamble is no part of it.
    block = draw.sample(range(1000, 150_000), period)
    ids = unit(draw, preamble, 1000) + (block * (bound(period) // period + 3))
    assert found(ids, (1,)) == Loop(period, preamble + bound(period))


@pytest.mark.prove
def test_a_loop_of_every_period_is_found_at_its_bound():
    for period in range(1, MAX_PERIOD + 1):
        draw = random.Random(period)
        block = draw.sample(range(1000, 150_000), period)
        preamble = draw.randrange(2000)
        ids = unit(draw, preamble, 1000) + (block * (bound(period) // period + 3))
        assert found(ids, (draw.randint(1, 8),)) == Loop(period, preamble + bound(period))


def test_a_loop_deep_in_a_long_output_is_found_and_little_is_kept_of_what_came_before():
    draw = random.Random(0)
    guard = LoopGuard()
    for _ in range(100):
        assert guard.push(unit(draw, 1000, 150_000)) is None
    assert len(guard._kept) < 20_000
    assert guard.push(unit(draw, 2048, 150_000) * 5) == Loop(2048, 100_000 + 4 * 2048)


def test_one_repeat_less_and_longer_periods_are_no_loop():
    draw = random.Random(1)
    for period in (1, 64, 65, 2048):
        block = draw.sample(range(150_000), period)
        ids = (block * bound(period))[: bound(period) - 1]
        assert found([*ids, 150_001, *ids]) is None
    assert found(draw.sample(range(150_000), MAX_PERIOD + 1) * 6, (64,)) is None


def test_ids_of_a_large_vocabulary_and_those_of_half_surrogates_are_tokens_like_others():
    # As characters some of them would be no text.
    block = [0, 0xD7FF, 0xD800, 0xDFFF, 0xE000, 152_575, 1_056_767]
    assert found(block * 60) == Loop(7, 256)


@pytest.fixture(scope="module")
def demo_tokenizer():
    return Tokenizer.from_dir(resolve_model("demo"))


def check_corpus(tokenizer, seeds):
    for seed in seeds:
        text = document(seed)
        for ids in (tokenizer.encode(text), text.encode()):
            assert found(ids, (64,)) is None, (KINDS[seed % len(KINDS)].__name__, seed)


def test_code_tables_and_lists_are_no_loops(demo_tokenizer):
    check_corpus(demo_tokenizer, range(8 * len(KINDS)))


@pytest.mark.prove
def test_five_thousand_texts_of_code_tables_and_lists_are_no_loops(demo_tokenizer):
    check_corpus(demo_tokenizer, range(5000))


def test_what_is_word_for_word_the_same_without_end_is_a_loop(demo_tokenizer):
    # A limit of the rule: it cannot know that somebody asked for them.
    for text in ("0, " * 400, "| a | b |\n" * 80, "Wait, let me check again. " * 60):
        ids = demo_tokenizer.encode(text)
        loop = found(ids)
        assert loop is not None
        assert loop.position <= bound(loop.period) + 2 * loop.period
