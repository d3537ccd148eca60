"""The whole recipe of the demo model in small: two runs, an evaluation, both exports, an answer."""

import pytest
import torch

from mimo_engine import LLM, SamplingParams
from mimo_engine.config.engine import CacheConfig
from mimo_engine.demo.__main__ import main
from mimo_engine.demo.evaluate import evaluate, score_table
from mimo_engine.demo.export import make_twin
from mimo_engine.demo.schedule import AUDIO_UNTIL, DRAFTS_FROM, Budget, Clock
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.state import load_state
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.tokenizer import learn_merges, task_texts
from mimo_engine.demo.train import Recipe, Trainer

STEPS = 5
CUT = 1
"""Steps of the first run: the codebooks and the draft layers are the second's."""
RECIPE = Recipe(max_tokens=1024, fit_vectors=1100)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return demo_tasks(SpeechBanks(tmp_path_factory.mktemp("banks")))


def train(trainer, *, before, steps):
    """One run; its clock."""
    budget = Budget(run=steps, total=STEPS, in_steps=True)
    clock = Clock(budget=budget, spent_before=before)
    trainer.run(clock)
    return clock


def tensors_of(folder):
    tensors, record = load_state(folder)
    return tensors, (record.step, record.spent, record.is_audio_fitted)


def test_a_training_cut_in_two_is_the_same_and_ends_in_checkpoints_that_serve(tasks, tmp_path):
    assert CUT / STEPS < AUDIO_UNTIL < DRAFTS_FROM < 1
    merges = learn_merges(task_texts(tasks, per_task=20, seed=0))
    cpu = torch.device("cpu")
    whole = Trainer(tasks, merges, RECIPE, mix={}, device=cpu)
    clock = train(whole, before=0, steps=CUT)
    whole.save(tmp_path / "first", clock, torch.float32, {})
    clock = train(whole, before=CUT, steps=STEPS - CUT)
    whole.save(tmp_path / "whole", clock, torch.float32, {})

    state = load_state(tmp_path / "first")
    second = Trainer(tasks, state[1].merges, RECIPE, mix={}, device=cpu, state=state)
    clock = train(second, before=CUT, steps=STEPS - CUT)
    second.save(tmp_path / "second", clock, torch.float32, {})
    expected, its_record = tensors_of(tmp_path / "whole")
    found, record = tensors_of(tmp_path / "second")
    assert record == its_record
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not value.equal(found[name])] == []

    short = [task for task in tasks if (task.modality, task.name) == ("image", "colour")]
    scores = evaluate(
        second.network, short, second.encoder, second.tokenizer, device=cpu, items_per_task=1
    )
    assert "colour" in score_table(scores)

    main(["export", "--run", str(tmp_path / "second"), "--out", str(tmp_path / "data")])
    make_twin(tmp_path / "data/fp8", tmp_path / "data/mxfp4", tmp_path / "twin")
    for model in (tmp_path / "data/fp8", tmp_path / "twin"):
        llm = LLM(str(model), device="cpu", cache=CacheConfig(kv_cache_gib=0.25))
        (output,) = llm.generate(["1+1="], SamplingParams(max_tokens=4, ignore_eos=True))
        llm.close()
        assert len(output.token_ids) == 4
