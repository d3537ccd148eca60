"""The whole recipe of the demo model in small: two runs, an evaluation, both exports, an answer."""

import pytest
import torch

from mimo_engine import LLM, SamplingParams
from mimo_engine.config.engine import CacheConfig
from mimo_engine.demo.__main__ import main
from mimo_engine.demo.evaluate import evaluate, score_table
from mimo_engine.demo.export import make_plain, make_twin
from mimo_engine.demo.schedule import Budget, Clock
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.state import load_state
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.tokenizer import learn_merges, task_texts
from mimo_engine.demo.train import Recipe, Trainer
from mimo_engine.errors import CheckpointError, ConfigError

STEPS = 5
CUTS = (1, 4)
"""Steps before the cut: of all parts but the drafts, with codebooks to come; of all parts."""
RECIPE = Recipe(max_tokens=1024, fit_vectors=1100)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return demo_tasks(SpeechBanks(tmp_path_factory.mktemp("banks")))


def run_to(trainer, step, folder, *, before):
    """Train until `step` of STEPS, and save."""
    budget = Budget(run=step - before, total=STEPS, in_steps=True)
    clock = Clock(budget=budget, spent_before=before)
    trainer.run(clock)
    trainer.save(folder, clock, torch.float32, {})


@pytest.fixture(scope="module")
def uncut(tasks, tmp_path_factory):
    """Of one training, what it left after each of CUTS and at its end: folders by step."""
    merges = learn_merges(task_texts(tasks, per_task=20, seed=0))
    trainer = Trainer(tasks, merges, RECIPE, mix={}, device=CPU)
    folders, before = {}, 0
    for step in (*CUTS, STEPS):
        folders[step] = tmp_path_factory.mktemp("run") / str(step)
        run_to(trainer, step, folders[step], before=before)
        before = step
    return folders


@pytest.mark.parametrize(
    "cut", [CUTS[0], *(pytest.param(cut, marks=pytest.mark.prove) for cut in CUTS[1:])]
)
def test_a_training_that_was_cut_is_the_same_to_the_bit(cut, tasks, uncut, tmp_path):
    state = load_state(uncut[cut])
    trainer = Trainer(tasks, state[1].merges, RECIPE, mix={}, device=CPU, state=state)
    run_to(trainer, STEPS, tmp_path, before=cut)
    (expected, record), (found, its_record) = load_state(uncut[STEPS]), load_state(tmp_path)
    assert its_record == record
    assert record.is_audio_fitted
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not value.equal(found[name])] == []
    # All parts have moved, the draft layers too.
    assert found["network.mtp.layers.0.self_attn.o_proj.weight"].any()


def test_a_training_is_evaluated(tasks, uncut):
    state = load_state(uncut[STEPS])
    trainer = Trainer(tasks, state[1].merges, RECIPE, mix={}, device=CPU, state=state)
    short = [task for task in tasks if (task.modality, task.name) == ("image", "colour")]
    scores = evaluate(
        trainer.network, short, trainer.encoder, trainer.tokenizer, device=CPU, items_per_task=1
    )
    assert "colour" in score_table(scores)


def test_a_training_is_exported_and_serves(uncut, tmp_path):
    main(["export", "--run", str(uncut[STEPS]), "--out", str(tmp_path / "data")])
    make_twin(tmp_path / "data/fp8", tmp_path / "data/mxfp4", tmp_path / "twin")
    make_plain(tmp_path / "data/fp8", tmp_path / "plain")
    for model in (tmp_path / "data/fp8", tmp_path / "twin", tmp_path / "plain"):
        llm = LLM(str(model), device="cpu", cache=CacheConfig(kv_cache_gib=0.25))
        (output,) = llm.generate(["1+1="], SamplingParams(max_tokens=4, ignore_eos=True))
        llm.close()
        assert len(output.token_ids) == 4
    with pytest.raises(ConfigError, match="already exists"):
        main(["export", "--run", str(uncut[STEPS]), "--out", str(tmp_path / "data")])


def test_a_training_without_codebooks_is_not_exported(uncut, tmp_path):
    with pytest.raises(CheckpointError, match="go on with --resume"):
        main(["export", "--run", str(uncut[CUTS[0]]), "--out", str(tmp_path / "data")])


def test_a_training_goes_on_with_its_own_seed(uncut, tmp_path):
    arguments = ["train", "--minutes", "1", "--out", str(tmp_path), "--resume", str(uncut[STEPS])]
    banks = ["--banks", str(tmp_path / "banks")]
    with pytest.raises(ConfigError, match="has the seed 0"):
        main([*arguments, *banks, "--seed", "5"])


def test_a_mix_without_sound_is_refused_when_codebooks_are_due(tasks):
    texts = [task for task in tasks if task.modality == "text"]
    merges = learn_merges(task_texts(texts, per_task=20, seed=0))
    recipe = Recipe(max_tokens=64, fit_vectors=10)
    trainer = Trainer(texts, merges, recipe, mix={}, device=CPU)
    clock = Clock(budget=Budget(run=1, total=2, in_steps=True), spent_before=1)
    with pytest.raises(ConfigError, match="no task with sound"):
        trainer.run(clock)
