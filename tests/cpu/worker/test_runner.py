"""A step in which one request's numbers break ends that request and no other."""

import pytest
import torch

from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.main import main
from mimo_engine.messages import NewRequest


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("runner") / "model"
    assert main(["random-checkpoint", str(path)]) == 0
    return LLM(str(path), device="cpu")


def test_nan_logits_end_their_request_alone_and_leave_no_page_in_use(llm):
    params = SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True)
    healthy = [5, 6, 7, 8]
    [expected] = llm.generate([healthy], params)
    poison = 99
    weight = llm.core.executor.worker.model.embed_tokens.weight
    with torch.no_grad():
        sound = weight[poison].clone()
        weight[poison] = float("nan")
    try:
        for request_id, prompt in (("bad", [poison] * 40), ("good", healthy)):
            llm.core.add(NewRequest(request_id=request_id, prompt_token_ids=prompt, params=params))
        tokens, reasons = [], {}
        while llm.core.has_work:
            for output in llm.core.step():
                reasons[output.request_id] = (output.finish_reason, output.error)
                if output.request_id == "good":
                    tokens += output.token_ids
    finally:
        with torch.no_grad():
            weight[poison] = sound
    assert tokens == expected.token_ids
    assert reasons["good"] == ("length", None)
    assert reasons["bad"][0] == "error"
    assert "check --deep" in reasons["bad"][1]
    stats = llm.core.stats()
    assert (stats.full_pages_used, stats.sliding_pages_used) == (0, 0)


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
