"""Makes the helpers of this directory, and the slow draft layers of tests/cpu/model, importable."""

import sys
from pathlib import Path

import pytest

from mimo_engine.cli.main import main

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1] / "model")]

import captured  # noqa: E402


@pytest.fixture(scope="session")
def random_path(tmp_path_factory):
    """A checkpoint of random weights."""
    path = str(tmp_path_factory.mktemp("random") / "model")
    assert main(["random-checkpoint", path]) == 0
    return path


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Steps are captured, in the way of captured.py."""
    captured.replay_on_a_cpu(monkeypatch)
    captured.dont_warm_up(monkeypatch)
