"""What is done at start, so that traffic waits for nothing and memory does not run short."""

from dataclasses import replace

import captured
import pytest
import torch
from captured import engine

from mimo_engine import SamplingParams
from mimo_engine.kernels.decode_step import SlotTensors
from mimo_engine.model.mtp import MtpLayers
from mimo_engine.worker.budget import reserved_bytes
from mimo_engine.worker.graphs import batch_sizes


@pytest.fixture
def started(random_path, monkeypatch):
    """(engine, which draft layers have run until it was there)."""
    captured.replay_on_a_cpu(monkeypatch)
    forward, ran = MtpLayers.forward, []

    def counted(self, layer, **named):
        ran.append((layer, len(named["hidden"])))
        return forward(self, layer, **named)

    with monkeypatch.context() as patch:
        patch.setattr(MtpLayers, "forward", counted)
        llm = engine(random_path, 3)
    yield llm, ran
    llm.close()


def test_nothing_is_captured_in_the_middle_of_traffic(started):
    llm, ran = started
    graphs = llm.core.executor.worker.runner.graphs
    at_start = set(graphs._graphs)
    assert at_start == {(size, depth) for size in batch_sizes(3) for depth in range(4)}
    # Passes behind prompts, which nobody captures.
    assert {(layer, 100) for layer in range(3)} <= set(ran)
    params = [
        SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=count)
        for count in (3, 4, 5, 6, 30, 17)
    ]
    llm.generate([[5, 6, 7]] * 6, params)
    assert set(graphs._graphs) == at_start


def num_bytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_what_is_kept_by_slot_is_held_back_from_the_cache(started):
    llm, _ = started
    worker = llm.core.executor.worker
    runner = worker.runner
    config = worker._config
    kept = [runner._drafter._ring, *runner.inputs.device_tables.values()]
    kept += [getattr(runner.graphs._state, name) for name in SlotTensors.__slots__]

    def reserved(num_slots, num_draft_layers=3):
        scheduler = replace(config.scheduler, max_num_seqs=num_slots)
        return reserved_bytes(
            replace(config, scheduler=scheduler),
            worker._model_config,
            element_bytes=worker.dtype.itemsize,
            num_draft_layers=num_draft_layers,
            media=None,
            captures=True,
        )

    # A slot's share of them is counted, and so are the buffers of its rows in captured steps.
    assert reserved(4) - reserved(3) > num_bytes(kept) / 4
    ring = num_bytes(kept[:1])
    assert reserved(3) - reserved(3, 0) > ring
    logits = 3 * 4 * worker._model_config.vocab_size * torch.float32.itemsize
    assert reserved(3) - reserved(3, 0) > ring + logits
