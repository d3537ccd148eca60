"""Captured steps give what steps run piece by piece give, and touch no page of others."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from captured import Replay, engine, texts

from mimo_engine import SamplingParams


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_steps_run_piece_by_piece(num_drafts, temperature, random_path, request):
    params = SamplingParams(temperature=temperature, ignore_eos=True)
    expected = texts(random_path, 0, params)
    request.getfixturevalue("on_a_cpu")
    before = Replay.num_replays
    assert texts(random_path, num_drafts, params) == expected
    assert Replay.num_replays > before + 20


def test_what_is_in_slots_that_nobody_wrote_does_not_matter(random_path, on_a_cpu):
    """NaN in them, and in hidden states: what a request leaves whose numbers were broken."""
    params = SamplingParams(temperature=1.0, ignore_eos=True)
    expected = texts(random_path, 3, params)

    def poison(llm):
        drafter = llm.core.executor.worker.runner._drafter
        for cache in (*llm.core.executor.worker.runner.caches, *drafter.caches):
            cache.k.fill_(float("nan"))
            cache.v.fill_(float("nan"))
        drafter._ring.fill_(float("nan"))

    assert texts(random_path, 3, params, poison) == expected


def test_as_many_drafts_as_may_be_asked_for(random_path, request):
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=40)

    def text(num_drafts):
        llm = engine(random_path, num_drafts, weights="random-bf16")
        [output] = llm.generate([[7, 8, 9]], params)
        return output.token_ids

    expected = text(0)
    request.getfixturevalue("on_a_cpu")
    assert text(16) == expected


def published(llm):
    """K and V of draft layers, by page that the prefix cache offers with its draft rows."""
    cache, runner = llm.core._scheduler._cache, llm.core.executor.worker.runner
    size = cache.layout.page_size
    return {
        entry.sliding_page: [
            pool[entry.sliding_page * size : (entry.sliding_page + 1) * size].clone()
            for layer in runner._drafter.caches
            for pool in (layer.k, layer.v)
        ]
        for entry in cache._prefix.entries()
        if entry.sliding_page is not None and entry.drafted
    }


def test_draft_rows_of_shared_pages_stay_as_they_are(random_path, on_a_cpu):
    llm = engine(random_path, 3)
    prompt = [i % 40 + 3 for i in range(48)]
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=12)
    [first] = llm.generate([prompt], greedy)
    before = published(llm)
    assert before
    text = prompt + first.token_ids
    # One that hits and is about to end, beside one that keeps the draft layers running.
    for cut, max_tokens in product((49, 50, 51), (2, 3, 4)):
        ends = replace(greedy, max_tokens=max_tokens)
        outputs = llm.generate([[5] * 9, text[:cut]], [greedy, ends])
        assert outputs[1].num_cached_tokens >= 32
        after = published(llm)
        for page, pools in before.items():
            assert all(map(torch.equal, pools, after[page]))
    llm.close()
