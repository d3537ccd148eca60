"""`check --towers` over the real engine: random weights conclude nothing, and scores are the
model's own."""

import json
import multiprocessing

import numpy as np
import pytest
from omni_server import make_omni, omni_config, user

from media_files import gradient, make_image
from mimo_engine import LLM, SamplingParams
from mimo_engine.cli.answer_scores import Question, open_scorer
from mimo_engine.cli.main import main
from mimo_engine.config.engine import CacheConfig, ParallelConfig, SchedulerConfig
from mimo_engine.config.media_settings import MediaFacts

PICTURE = gradient(160, 128)
QUESTION = "What is it?"


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    # One full layer and one that slides: the towers are what is looked at.
    return make_omni(tmp_path_factory.mktemp("omni") / "model", "--num-layers", "2")


@pytest.fixture
def captions(tmp_path):
    lines = []
    for i in range(5):
        (tmp_path / f"{i}.png").write_bytes(make_image(np.roll(gradient(96, 64), 12 * i, axis=1)))
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"A gradient, turned by {i}."}))
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


def questions(*answers, image=PICTURE):
    return [Question(image=image, text=QUESTION, answer=answer) for answer in answers]


def test_nothing_can_be_concluded_from_random_weights(omni, captions, capsys):
    assert main(["check", "--towers", omni, "--captions", captions, "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "whole: every tensor has its place" in output
    for setting in ("vision_sinks", "vision_merger_norm", "pixel_stats"):
        assert f"\n{setting}: nothing can be concluded (" in output
    for setting in ("resize_filter", "pixel_limits", "audio_mask"):
        assert f"\n{setting}: not tested here (" in output
    assert output.endswith(
        "\nNothing can be concluded: no sign that these weights see the pictures\n"
    )
    rows = [line.split() for line in output.splitlines() if line.startswith(("extra_", "key0 "))]
    assert len({tuple(row[:3]) for row in rows}) == 5
    assert len({row[3] for row in rows}) == 5, "each variant has towers of its own"


def test_a_score_is_what_the_model_gives_that_token_when_it_answers(omni):
    """Bias forces each token; log-probabilities are from before it."""
    config = omni_config(omni)
    llm = LLM(omni, device="cpu", cache=config.cache, scheduler=config.scheduler)
    ids = [llm.tokenizer.encode(text)[0] for text in "RGB"]
    conversation = [user({"type": "image", "image": PICTURE}, QUESTION)]
    forced = [
        SamplingParams(temperature=0.0, max_tokens=1, logprobs=0, logit_bias={one: 100.0})
        for one in ids
    ]
    outputs = llm.chat([conversation] * 3, forced, chat_template_kwargs={"enable_thinking": False})
    llm.close()
    assert [output.token_ids for output in outputs] == [[one] for one in ids]
    with open_scorer(config) as score:
        found = score(questions("R", "G", "B"))
    assert [len(one) for one in found] == [1, 1, 1]
    expected = [output.logprobs[0].logprob for output in outputs]
    assert [one[0] for one in found] == pytest.approx(expected, abs=1e-4)


def test_scores_go_by_the_picture_the_towers_and_nothing_else(omni):
    def scores(image, batch=(), **facts):
        with open_scorer(omni_config(omni, media=MediaFacts(**facts))) as score:
            return score([*questions("Red and blue", image=image), *batch])[0]

    alone = scores(PICTURE)
    assert len(alone) > 1
    assert scores(PICTURE, questions("Red", "Green", image=PICTURE[:64])) == pytest.approx(
        alone, abs=1e-4
    )
    others = [
        scores(PICTURE[::-1].copy()),
        scores(PICTURE, vision_sinks="key0"),
        scores(PICTURE, vision_merger_norm="rmsnorm"),
        scores(PICTURE, pixel_stats="imagenet"),
    ]
    assert all(abs(one[0] - alone[0]) > 1e-3 for one in others)


def test_two_ranks_score_as_one_does_and_end_with_the_scorer(omni):
    before = set(multiprocessing.active_children())
    found = []
    for ranks in (1, 2):
        config = omni_config(
            omni,
            cache=CacheConfig(kv_cache_gib=0.25),
            scheduler=SchedulerConfig(max_num_seqs=4, max_num_batched_tokens=64),
            parallel=ParallelConfig(tensor_parallel_size=ranks),
        )
        with open_scorer(config) as score:
            found += score(questions("Red and blue"))
        assert set(multiprocessing.active_children()) <= before
    assert found[1] == pytest.approx(found[0], abs=1e-4)
