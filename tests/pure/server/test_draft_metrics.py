"""Drafts in /metrics: counters by layer, and no number that nobody measured."""

from types import SimpleNamespace

from mimo_engine.messages import DraftStats, EngineStats
from mimo_engine.server.metrics import Metrics

DRAFTS = DraftStats(
    depth=2,
    acceptance_length=1.5,
    gain=None,
    num_verifications=10,
    num_drafted=20,
    num_tested=[10, 8, 0],
    num_right=[8, 1, 0],
)


def told(drafts):
    client = SimpleNamespace(stats=EngineStats(drafts=drafts), trouble=None, num_restarts=0)
    lines = Metrics(client).render().decode().splitlines()
    return {
        name.removeprefix("mimo_engine_draft_"): float(value)
        for name, value in (line.rsplit(" ", 1) for line in lines)
        if name.startswith("mimo_engine_draft_")
    }


def test_what_was_counted_is_told_by_layer():
    assert told(DRAFTS) == {
        "verifications_total": 10,
        "tokens_total": 20,
        "tokens_accepted_total": 9,
        "depth": 2,
        "acceptance_length": 1.5,
        'layer_tested_total{layer="0"}': 10,
        'layer_tested_total{layer="1"}': 8,
        'layer_tested_total{layer="2"}': 0,
        'layer_accepted_total{layer="0"}': 8,
        'layer_accepted_total{layer="1"}': 1,
        'layer_accepted_total{layer="2"}': 0,
        'layer_acceptance{layer="0"}': 0.8,
        'layer_acceptance{layer="1"}': 0.125,
    }


def test_without_drafts_nothing_is():
    assert told(None) == {}
