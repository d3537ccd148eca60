"""Captured steps without a GPU: what would be replayed is run, by the operators' definitions."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, SchedulerConfig, SpeculativeConfig
from mimo_engine.engine.drafts import DraftControl
from mimo_engine.kernels import decode_step, dispatch, sampling
from mimo_engine.kernels.attention import PagedRows, attention, paged_attention
from mimo_engine.worker import graphs, worker


def either_attention(q, k, v, rows, **named):
    return (paged_attention if isinstance(rows, PagedRows) else attention)(q, k, v, rows, **named)


STEP = dispatch.StepKernels(
    begin_step=decode_step.begin_step,
    end_step=decode_step.end_step,
    sample_rows=sampling.sample_rows,
    begin_drafts=decode_step.begin_drafts,
    draft_tokens=decode_step.draft_tokens,
    end_drafts=decode_step.end_drafts,
    accept_drafts=sampling.accept_drafts,
)
KERNELS = replace(dispatch.REFERENCE, reads_pages=True, attention=either_attention, step=STEP)


class Event:
    def record(self):
        pass

    def synchronize(self):
        pass


class Replay:
    """What a graph would do, done."""

    num_replays = 0

    def __init__(self, run):
        self.run = run

    def replay(self):
        Replay.num_replays += 1
        self.out.copy_(self.run())


@torch.inference_mode()
def run_in_place_of_graph(self, size, depth):
    if (size, depth) not in self._graphs:
        slots = torch.zeros(size, dtype=torch.int64)
        num_drafts = torch.zeros(size, dtype=torch.int32)
        replay = Replay(lambda: self._step(slots, num_drafts, depth))
        replay.out = self._step(slots, num_drafts, depth).clone()
        members = [(0, 0)] * size
        self._graphs[size, depth] = graphs._Graph(slots, num_drafts, members, replay, replay.out)
    return self._graphs[size, depth]


@pytest.fixture
def on_a_cpu(monkeypatch):
    make_empty = torch.empty

    def empty(*size, pin_memory=False, **named):
        return make_empty(*size, **named)

    monkeypatch.setattr(worker, "choose_kernels", lambda *_: KERNELS)
    monkeypatch.setattr(worker, "warm_up", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(graphs, "_pinned", lambda values, dtype: torch.tensor(values, dtype=dtype))
    monkeypatch.setattr(graphs.DecodeGraphs, "_graph", run_in_place_of_graph)
    monkeypatch.setattr(graphs.DecodeGraphs, "capture", lambda _: None)


def engine(path, num_drafts):
    drafts = SpeculativeConfig(speculative="off")
    if num_drafts:
        drafts = SpeculativeConfig(speculative="mtp", max_draft_tokens=num_drafts)
    return LLM(
        path,
        device="cpu",
        cache=CacheConfig(kv_cache_gib=0.25),
        scheduler=SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=48),
        speculative=drafts,
    )


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("captured") / "model")
    assert main(["random-checkpoint", path]) == 0
    return path


def texts(path, num_drafts, params, prepare=lambda llm: None):
    llm = engine(path, num_drafts)
    prepare(llm)
    prompts = [[7 * i % 50 + 1, *range(3, 3 + 13 * i)] for i in range(1, 6)]
    own = [replace(params, seed=i, max_tokens=10 + 7 * i) for i in range(5)]
    outputs = llm.generate(prompts, own)
    llm.close()
    return [output.token_ids for output in outputs]


@pytest.mark.parametrize("num_drafts", [0, 3])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_texts_are_those_of_steps_run_piece_by_piece(num_drafts, temperature, path, request):
    params = SamplingParams(temperature=temperature, ignore_eos=True)
    expected = texts(path, 0, params)
    request.getfixturevalue("on_a_cpu")
    before = Replay.num_replays
    assert texts(path, num_drafts, params) == expected
    assert Replay.num_replays > before + 20


def test_what_is_in_slots_that_nobody_wrote_does_not_matter(path, on_a_cpu):
    """NaN in them, and in hidden states: what a request leaves whose numbers were broken."""
    params = SamplingParams(temperature=1.0, ignore_eos=True)
    expected = texts(path, 3, params)

    def poison(llm):
        drafter = llm.core.executor.worker.runner._drafter
        for cache in (*llm.core.executor.worker.runner.caches, *drafter.caches):
            cache.k.fill_(float("nan"))
            cache.v.fill_(float("nan"))
        drafter._ring.fill_(float("nan"))

    assert texts(path, 3, params, poison) == expected


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


def test_draft_rows_of_shared_pages_stay_as_they_are(path, on_a_cpu):
    llm = engine(path, 3)
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


def stopped(path):
    """An engine whose requests were ended by a stop token, one long before the other; its texts."""
    llm = engine(path, 3)
    greedy = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=40)
    prompts = [[7, 8, 9], [11, 12, 13]]
    free = [output.token_ids for output in llm.generate(prompts, greedy)]
    new = [[i for i, token in enumerate(own) if token not in own[:i]] for own in free]
    places = (new[0][8], max(place for place in new[1] if place < 28))
    assert places[0] + 8 < places[1]
    stops = [
        replace(greedy, stop_token_ids=(own[place],))
        for own, place in zip(free, places, strict=True)
    ]
    return llm, llm.generate(prompts, stops)


def test_nothing_is_under_way_when_generate_returns(path, on_a_cpu):
    llm, outputs = stopped(path)
    assert {output.finish_reason for output in outputs} == {"stop"}
    assert not llm.core.has_work
    assert llm.core.stats().full_pages_used == 0
    llm.close()


def test_rows_computed_in_vain_count_as_no_drafts(path, request):
    expected = stopped(path)[0].core.stats().drafts
    request.getfixturevalue("on_a_cpu")
    found = stopped(path)[0].core.stats().drafts
    assert found.num_drafted == expected.num_drafted
    assert found.num_accepted == expected.num_accepted


def test_a_depth_is_chosen_once_a_step(path, on_a_cpu, monkeypatch):
    num_chosen = 0

    def choose(self, num_decoding):
        nonlocal num_chosen
        num_chosen += 1
        return num_chosen // 5 % 4

    monkeypatch.setattr(DraftControl, "choose", choose)
    llm = engine(path, 3)
    launch, num_launched = llm.core.executor.launch, 0

    def counted(plan):
        nonlocal num_launched
        num_launched += 1
        return launch(plan)

    monkeypatch.setattr(llm.core.executor, "launch", counted)
    params = SamplingParams(temperature=0.0, ignore_eos=True)
    own = [replace(params, max_tokens=count) for count in (9, 20, 33, 40)]
    llm.generate([[count] for count in range(3, 7)], own)
    assert num_launched > 20
    # One was chosen for a step that did not come.
    assert num_launched <= num_chosen <= num_launched + 1
    llm.close()
