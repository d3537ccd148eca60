"""What fails does not take the others with it."""

import json

import pytest
import torch

from mimo_engine.bench import kernels
from mimo_engine.bench.ceilings import Ceilings

CEILINGS = Ceilings(copy_bytes_per_s=4e12, bf16_flops=8e14, fp8_flops=1.6e15)


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """What `time_case` does for every second case, a failure, and whether the context is lost."""
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a small one")
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(kernels, "measure_ceilings", lambda: CEILINGS)
    seen = []

    def time_case(op, case, _):
        seen.append(case)
        if len(seen) % 2 == 0:
            raise RuntimeError(f"no {case.name}")
        return kernels.Timing(2e-6, 1e-6, 0.0)

    def lose(is_lost):
        monkeypatch.setattr(kernels, "context_is_lost", lambda: is_lost)

    monkeypatch.setattr(kernels, "time_case", time_case)
    lose(False)
    return lose


def lines(folder):
    text = (folder / "benchmarks" / "results" / "kernels.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_each_case_is_a_line_and_failures_are_told_at_the_end(timed, tmp_path, capsys):
    assert kernels.main(["paged_attention", "8 x"]) == 1
    found = lines(tmp_path)
    assert len(found) > 2
    assert [line.get("us") for line in found[:3]] == [2.0, None, 2.0]
    assert "no " in found[1]["problem"]
    failed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("failed: ")]
    assert failed == [f"failed: {line['case']}" for line in found if "problem" in line]


def test_nothing_is_tried_in_a_lost_context(timed, tmp_path, capsys):
    timed(True)
    assert kernels.main([]) == 1
    assert len(lines(tmp_path)) == 2
    assert "the context is lost" in capsys.readouterr().out


def test_no_case_is_no_failure(timed):
    assert kernels.main(["no such operator"]) == 0
