"""A request whose numbers break ends with an error, and leaves nothing of them to others."""

from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig

PARAMS = SamplingParams(temperature=0.0, max_tokens=8, ignore_eos=True)


def test_what_is_broken_is_cleaned_before_others_have_the_pages(tmp_path):
    assert main(["random-checkpoint", str(tmp_path / "model")]) == 0
    cache = CacheConfig(page_size=16, kv_cache_gib=0.25, prefix_caching=False)
    llm = LLM(str(tmp_path / "model"), device="cpu", cache=cache)
    runner = llm.core.executor.worker.runner
    table = runner.model.embed_tokens.weight.data
    before = table[5].clone()
    table[5] = float("nan")
    bad, good = llm.generate([[3, 5, 4], [3, 6, 4]], PARAMS)
    assert bad.finish_reason == "error"
    assert "NaN" in bad.error
    assert good.finish_reason == "length"
    pools = [*runner.caches, *runner._drafter.caches]
    assert all(pool.k.isfinite().all() and pool.v.isfinite().all() for pool in pools)
    table[5] = before
    again, alone = llm.generate([[3, 5, 4], [3, 6, 4]], PARAMS)
    assert again.finish_reason == "length"
    assert alone.token_ids == good.token_ids
