"""What the benches of steps and prompts measure and write, on a small model without a GPU."""

import json
from contextlib import contextmanager

import captured
import pytest
import torch

from mimo_engine import LLM
from mimo_engine.bench.agreement import beyond, led_logits
from mimo_engine.bench.ceilings import Ceilings
from mimo_engine.bench.slice import SliceOptions
from mimo_engine.bench.touched import prompt_seconds, prompt_touches, step_touches
from mimo_engine.config.engine import CacheConfig, SchedulerConfig, SpeculativeConfig
from mimo_engine.errors import ConfigError

CEILINGS = Ceilings(copy_bytes_per_s=4e12, bf16_flops=8e14, fp8_flops=1.6e15)
PROMPTS = [[7 * i % 50 + 1, *range(3, 140 + i)] for i in range(2)]


def engine(path, chunk=512, prefix_caching=False, kv_cache_gib=0.25):
    return LLM(
        path,
        device="cpu",
        cache=CacheConfig(kv_cache_gib=kv_cache_gib, prefix_caching=prefix_caching),
        scheduler=SchedulerConfig(max_num_seqs=3, max_num_batched_tokens=chunk),
        speculative=SpeculativeConfig(speculative="off"),
    )


def test_led_logits_are_the_same_by_every_way(random_path, on_a_cpu):
    llm = engine(random_path, prefix_caching=True)
    own = led_logits(llm, PROMPTS, 5)
    replays = captured.Replay.num_replays
    hit = led_logits(llm, PROMPTS, 5, hits=True)
    assert captured.Replay.num_replays > replays
    llm.close()
    llm = engine(random_path, chunk=48)
    chunks = led_logits(llm, PROMPTS, 5)
    llm.core.executor.worker.runner.graphs = None
    replays = captured.Replay.num_replays
    single = led_logits(llm, PROMPTS, 5)
    assert captured.Replay.num_replays == replays
    llm.close()
    assert own.shape == (10, llm.core.executor.worker.model.config.vocab_size)
    assert len({tuple(row.tolist()) for row in own}) == 10
    for other in (hit, chunks, single):
        torch.testing.assert_close(other, own, rtol=1e-3, atol=1e-4)


def test_what_is_further_off_than_rounding_is_told():
    near = {"definitions in bfloat16": 0.04, "captured": 0.05}
    ways = {"single steps": 0.0, "in chunks": 0.05, "prefix hit": 0.0}
    assert beyond({"definitions in float32": near, "captured": ways}) == []
    (problem,) = beyond({"definitions in float32": near, "captured": {**ways, "in chunks": 0.065}})
    assert problem.startswith("in chunks: 0.065 from captured, at most 0.064")
    broken = {**near, "captured": float("nan")}
    assert len(beyond({"definitions in float32": broken, "captured": ways})) == 1


def test_a_prompt_touches_each_of_its_chunks_weights(random_path, on_a_cpu):
    counts = {}
    for chunk in (512, 48):
        llm = engine(random_path, chunk)
        counts[chunk] = prompt_touches(llm, PROMPTS[0])
        router = llm.core.executor.worker.model.config.router
        assert 0 < counts[chunk].num_experts <= router.num_experts
        assert not any(module._forward_hooks for module in llm.core.executor.worker.model.modules())
        llm.close()
    assert 2 < counts[48].num_bytes / counts[512].num_bytes <= 3
    assert prompt_seconds(llm, 200, CEILINGS) > 2 * prompt_seconds(llm, 100, CEILINGS) * 0.99


def test_a_step_touches_more_with_more_requests_and_with_drafts(random_path, on_a_cpu):
    llm = captured.engine(random_path, 0)
    one, two = (step_touches(llm, PROMPTS[:count]) for count in (1, 2))
    llm.close()
    assert one.num_bytes < two.num_bytes
    assert one.num_draft_bytes == 0
    assert one.num_experts == llm.core.executor.worker.model.config.router.num_experts_per_tok
    llm = captured.engine(random_path, 3)
    drafted = step_touches(llm, PROMPTS[:1])
    llm.close()
    assert drafted.num_draft_bytes > 0
    assert drafted.num_all_bytes == drafted.num_bytes + drafted.num_draft_bytes


@pytest.fixture
def benches(random_path, on_a_cpu, monkeypatch, tmp_path):
    """(decode, prefill), with a small engine in place of a slice; lines go to tmp_path."""
    pytest.importorskip("triton")
    from mimo_engine.bench import decode, prefill  # noqa: PLC0415

    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)

    @contextmanager
    def started(options, **_):
        llm = engine(random_path, kv_cache_gib=options.kv_cache_gib)
        yield llm, {"s": 1.0, "compiled": 3}
        llm.close()

    def prompts(count, length, generator):
        return [torch.randint(1, 60, (length,), generator=generator).tolist() for _ in range(count)]

    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a small one")
    for module in (decode, prefill):
        monkeypatch.setattr(module, "started_slice", started)
        monkeypatch.setattr(module, "measure_ceilings", lambda: CEILINGS)
        monkeypatch.setattr(module, "random_prompts", prompts)
    return decode, prefill


def lines(folder, name):
    text = (folder / "benchmarks" / "results" / f"{name}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def test_each_size_of_steps_is_a_line_at_once(benches, tmp_path, monkeypatch):
    decode, _ = benches
    measured, seen = decode.step_touches, []

    def counted(*arguments):
        seen.append(len(lines(tmp_path, "step")) if seen else 0)
        return measured(*arguments)

    monkeypatch.setattr(decode, "step_touches", counted)
    options = SliceOptions(rounds=1, kv_cache_gib=0.25)
    assert decode.bench_steps(options, batches=(1, 2), contexts=(64,)) == 0
    assert seen == [0, 1]
    found = lines(tmp_path, "step")
    sizes = [(line["batch"], line["context"]) for line in found]
    assert sizes == [(1, 64), (2, 64)]
    for line in found:
        assert line["start"] == {"s": 1.0, "compiled": 3}
        assert line["config"]["layers"] == 12
        assert line["drafts"] == 0
        assert min(line["ms"], line["experts"], line["GB"] + 1) > 0


def test_a_size_that_does_not_fit_is_told_before_any_is_timed(benches, tmp_path):
    decode, _ = benches
    with pytest.raises(ConfigError, match="raise --kv-cache-gib"):
        decode.bench_steps(SliceOptions(rounds=1), batches=(1, 10**6), contexts=(64,))
    assert not (tmp_path / "benchmarks" / "results").exists()


def test_each_prompt_is_a_line(benches, tmp_path, capsys):
    _, prefill = benches
    prefill.bench_prefill(SliceOptions(rounds=2, kv_cache_gib=0.25), lengths=(40, 100))
    found = lines(tmp_path, "prefill")
    assert [line["prompt"] for line in found] == [40, 100]
    assert all(line["share_of_limit"] >= line["share_of_bytes"] > 0 for line in found)
    assert "experts" in capsys.readouterr().out


def test_a_start_tells_what_was_captured(random_path, monkeypatch):
    pytest.importorskip("triton")
    from mimo_engine.bench import start  # noqa: PLC0415

    captured.replay_on_a_cpu(monkeypatch)

    @contextmanager
    def small(*_, num_drafts, **__):
        llm = captured.engine(random_path, num_drafts)
        yield llm
        llm.close()

    monkeypatch.setattr(start, "random_slice", small)
    with start.started_slice(SliceOptions(), num_drafts=1) as (llm, told):
        assert llm.core.executor.worker.num_draft_layers == 1
    # Of one to three requests, with a draft and without.
    assert (told["graphs"], told["graph_MiB"], told["graph_driver_MiB"]) == (6, 0, 0)
    assert (told["compiled"], told["found_compiled"]) == (0, 0)
    assert told["s"] > 0
