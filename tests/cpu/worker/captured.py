"""Captured steps without a GPU: what would be replayed is run, by the operators' definitions."""

from dataclasses import replace

import torch

from mimo_engine import LLM
from mimo_engine.config.engine import CacheConfig, SchedulerConfig, SpeculativeConfig
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


def replay_on_a_cpu(monkeypatch):
    make_empty = torch.empty

    def empty(*size, pin_memory=False, **named):
        return make_empty(*size, **named)

    monkeypatch.setattr(worker, "choose_kernels", lambda *_: KERNELS)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr(graphs, "_pinned", lambda values, dtype: torch.tensor(values, dtype=dtype))
    monkeypatch.setattr(graphs.DecodeGraphs, "_graph", run_in_place_of_graph)


def dont_warm_up(monkeypatch):
    """Each graph when it is first asked for."""
    monkeypatch.setattr(worker, "warm_up", lambda *_, **__: None)
    monkeypatch.setattr(graphs.DecodeGraphs, "capture", lambda _: None)


def engine(path, num_drafts, weights="checkpoint"):
    drafts = SpeculativeConfig(speculative="off")
    if num_drafts:
        drafts = SpeculativeConfig(speculative="mtp", max_draft_tokens=num_drafts)
    return LLM(
        path,
        device="cpu",
        weights=weights,
        cache=CacheConfig(kv_cache_gib=0.25),
        scheduler=SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=48),
        speculative=drafts,
    )


def texts(path, num_drafts, params, prepare=lambda llm: None, weights="checkpoint"):
    llm = engine(path, num_drafts, weights)
    prepare(llm)
    prompts = [[7 * i % 50 + 1, *range(3, 3 + 13 * i)] for i in range(1, 6)]
    own = [replace(params, seed=i, max_tokens=10 + 7 * i) for i in range(5)]
    outputs = llm.generate(prompts, own)
    llm.close()
    return [output.token_ids for output in outputs]
