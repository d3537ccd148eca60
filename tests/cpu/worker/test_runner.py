"""A step in which one request's numbers break ends that request and no other."""

from contextlib import contextmanager

import pytest
import torch

from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, SchedulerConfig
from mimo_engine.messages import NewRequest


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("runner") / "model")
    assert main(["random-checkpoint", path]) == 0
    return path


@pytest.fixture(scope="module")
def llm(path):
    return LLM(path, device="cpu")


POISON = 99
"""A token, while its embedding is no number."""


@contextmanager
def poisoned(llm):
    weight = llm.core.executor.worker.model.embed_tokens.weight
    with torch.no_grad():
        sound = weight[POISON].clone()
        weight[POISON] = float("nan")
        yield
        weight[POISON] = sound


def run(llm, prompts, params):
    """Of each request its tokens, and of those that have ended the reason and the error."""
    for request_id, prompt in prompts.items():
        llm.core.add(NewRequest(request_id=request_id, prompt_token_ids=prompt, params=params))
    tokens, reasons = {request_id: [] for request_id in prompts}, {}
    while llm.core.has_work:
        for output in llm.core.step():
            tokens[output.request_id] += output.token_ids
            reasons[output.request_id] = (output.finish_reason, output.error)
    return tokens, reasons


def test_nan_logits_end_their_request_alone_and_leave_no_page_in_use(llm):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    healthy = [5, 6, 7, 8]
    [expected] = llm.generate([healthy], params)
    with poisoned(llm):
        tokens, reasons = run(llm, {"bad": [POISON] * 40, "good": healthy}, params)
    assert tokens["good"] == expected.token_ids
    assert reasons["good"] == ("length", None)
    assert reasons["bad"][0] == "error"
    assert "check --deep" in reasons["bad"][1]
    stats = llm.core.stats()
    assert (stats.full_pages_used, stats.sliding_pages_used) == (0, 0)


def test_no_prompt_finds_a_chunk_of_nan_in_the_prefix_cache(path):
    llm = LLM(
        path, device="cpu", scheduler=SchedulerConfig(max_num_seqs=2, max_num_batched_tokens=17)
    )
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    prompt = [*range(20), POISON, *range(60)]
    with poisoned(llm):
        # Beside one that decodes, so that some chunks are in a step that samples.
        _, reasons = run(llm, {"bad": prompt, "good": [5, 6, 7, 8]}, params)
    assert (reasons["bad"][0], reasons["good"][0]) == ("error", "length")
    [output] = llm.generate([prompt], params)
    assert output.num_cached_tokens == 16
    llm = LLM(path, device="cpu", cache=CacheConfig(prefix_caching=False))
    [expected] = llm.generate([prompt], params)
    assert output.token_ids == expected.token_ids


def test_prompt_logprobs_do_not_depend_on_how_the_prompt_is_chunked(llm):
    prompt = list(range(60))
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=3)
    [whole] = llm.generate([prompt], params)
    assert whole.prompt_logprobs[0] is None
    assert [score.token_id for score in whole.prompt_logprobs[1:]] == prompt[1:]
    continued = SamplingParams(temperature=0.0, max_tokens=1, logprobs=3)
    for cut in (1, 17, 59):
        [output] = llm.generate([prompt[:cut]], continued)
        own = dict(output.logprobs[0].top)
        scored = dict(whole.prompt_logprobs[cut].top)
        assert own == pytest.approx(scored, abs=1e-4)


def test_an_interrupted_step_leaves_an_engine_that_works(llm, monkeypatch):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    [expected] = llm.generate([[5, 6, 7, 8]], params)
    with monkeypatch.context() as patch:
        patch.setattr(llm.core.executor.worker.runner, "model", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[5, 6, 7, 8]] * 3, params)
    assert not llm.core.has_work
    assert llm.core.stats().full_pages_used == 0
    [again] = llm.generate([[5, 6, 7, 8]], params)
    assert again.token_ids == expected.token_ids


def interrupted(_batch):
    raise KeyboardInterrupt
