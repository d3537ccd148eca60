"""`check --towers` over scorers that only pretend: what is measured, printed and refused.

A pretended scorer knows which caption belongs to which picture and which colours a square has, and
scores as a model would whose towers were trained under one variant.
"""

import json
import random
import re
import shutil
from contextlib import contextmanager
from dataclasses import fields

import numpy as np
import pytest
from PIL import Image

from mimo_engine.chat.tokenizer import Tokenizer
from mimo_engine.cli.answer_scores import BATCH_QUESTIONS, AnswerFinder, Question
from mimo_engine.cli.colour_probe import COLOURS
from mimo_engine.cli.main import main
from mimo_engine.cli.tower_check import NOT_TESTED, TowerOptions, check_towers
from mimo_engine.cli.tower_verdicts import CHOICES
from mimo_engine.config.engine import ModelSettings, ParallelConfig
from mimo_engine.config.media import load_media_config
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.config.model import load_model_config
from mimo_engine.errors import ConfigError, RequestError

NUM = 12
TRUTH = {
    "vision_sinks": "extra_column",
    "vision_merger_norm": "rmsnorm",
    "pixel_stats": "imagenet",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    out = tmp_path_factory.mktemp("random") / "small"
    assert main(["random-checkpoint", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def captions(tmp_path_factory):
    """NUM pictures; the caption of picture i says i."""
    folder = tmp_path_factory.mktemp("captions")
    lines = []
    for i in range(NUM):
        Image.new("RGB", (96, 96), (20 * i, 0, 0)).save(folder / f"{i}.png")
        lines.append(json.dumps({"image": f"{i}.png", "caption": f"Picture {i}."}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


class Pretended:
    """Scorers of a world where `truth` was trained; remembers what it was opened for."""

    def __init__(self, truth, *, sees=True):
        self.truth = truth
        self.sees = sees
        self.facts = []
        self.questions = []

    @contextmanager
    def open(self, config):
        facts = config.media
        self.facts.append(facts)
        self.questions.append([])

        def score(questions):
            assert len(questions) <= BATCH_QUESTIONS
            self.questions[-1] += questions
            return [self.score(facts, question) for question in questions]

        yield score

    def score(self, facts, question):
        wrong = [name for name in CHOICES if getattr(facts, name) != self.truth[name]]
        noise = random.Random(f"{wrong}{question.answer}{question.text}{len(self.facts)}")
        if isinstance(question.image, np.ndarray):
            told = question.answer == self.colour(question, "vision_sinks" in wrong)
            return [-0.1 if told and self.sees else -3.0 - noise.random(), -0.5]
        own = question.answer == f"Picture {question.image.stem}."
        mean = 2.0 + (0.3 * len(wrong) if self.sees else noise.random()) + noise.gauss(0, 0.02)
        mean += 0.0 if own or not self.sees else 1.0
        return [-mean - 0.5, -mean + 0.5, -mean]

    def colour(self, question, is_blind):
        """What it says: the colour that was asked for, or Red if it sees none."""
        column = -1 if "right half" in question.text else 0
        names = {rgb: name for name, rgb in COLOURS.items()}
        return "Red" if is_blind else names[tuple(map(int, question.image[0, column]))]


def check(model, captions, pretended, *, facts=None, **options):
    facts = facts or MediaFacts()
    config = load_model_config(model)
    check_towers(
        model,
        TowerOptions(towers=True, captions=captions, **options),
        ModelSettings(),
        facts,
        load_media_config(model, config.media, facts, hidden_size=config.hidden_size),
        scorer_of=pretended.open,
    )


def table(output):
    """The rows of the table as lists of words."""
    lines = output.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("vision_sinks "))
    return [line.split() for line in lines[begin + 1 : begin + 6]]


def test_the_grid_is_measured_and_its_best_point_with_the_other_sinks(model, captions, capsys):
    pretended = Pretended(TRUTH)
    check(model, captions, pretended)
    measured = [tuple(getattr(facts, name) for name in CHOICES) for facts in pretended.facts]
    assert measured == [
        ("extra_column", "layernorm", "clip"),
        ("extra_column", "layernorm", "imagenet"),
        ("extra_column", "rmsnorm", "clip"),
        ("extra_column", "rmsnorm", "imagenet"),
        ("key0", "rmsnorm", "imagenet"),
    ]
    rows = table(capsys.readouterr().out)
    assert [tuple(row[:3]) for row in rows] == measured
    assert [row[-3:] for row in rows] == [["24", "of", "24"]] * 4 + [["6", "of", "24"]]
    nll = [float(row[3]) for row in rows]
    assert nll == pytest.approx([2.6, 2.3, 2.3, 2.0, 2.3], abs=0.05)


def test_every_variant_is_asked_the_same(model, captions):
    pretended = Pretended(TRUTH)
    check(model, captions, pretended)
    asked = [
        [(str(one.image), one.text, one.answer) for one in questions]
        for questions in pretended.questions
    ]
    assert all(one == asked[0] for one in asked)
    assert len(asked[0]) == 2 * NUM + 24 * len(COLOURS)
    own, shuffled = pretended.questions[0][:NUM], pretended.questions[0][NUM : 2 * NUM]
    assert [one.image.stem for one in own] == [str(i) for i in range(NUM)]
    assert [one.image.stem for one in shuffled] == [str((i + 1) % NUM) for i in range(NUM)]
    assert [one.answer for one in own] == [one.answer for one in shuffled]


def test_verdicts_say_what_to_pass(model, captions, capsys):
    check(model, captions, Pretended(TRUTH))
    lines = dict(re.findall(r"^(\w+): (.*)$", capsys.readouterr().out, flags=re.MULTILINE))
    assert lines["vision_sinks"].startswith("extra_column, the default (")
    assert lines["vision_merger_norm"].startswith("rmsnorm, pass --vision-merger-norm rmsnorm (")
    assert lines["pixel_stats"].startswith("imagenet, pass --pixel-stats imagenet (")


def test_statistics_of_the_checkpoints_own_file_need_no_flag(model, captions, capsys):
    check(model, captions, Pretended({**TRUTH, "pixel_stats": "clip"}))
    assert "\npixel_stats: clip, the default (" in capsys.readouterr().out


def test_the_other_sinks_are_found_and_another_run_settles_the_rest(model, captions, capsys):
    truth = {**TRUTH, "vision_sinks": "key0"}
    check(model, captions, Pretended(truth))
    output = capsys.readouterr().out
    assert "\nvision_sinks: key0, pass --vision-sinks key0 (" in output
    assert "\nvision_merger_norm: undecided (" in output
    check(model, captions, Pretended(truth), facts=MediaFacts(vision_sinks="key0"))
    output = capsys.readouterr().out
    assert "\nvision_merger_norm: rmsnorm, pass" in output
    assert "\npixel_stats: imagenet, pass" in output


def test_weights_that_do_not_see_conclude_nothing(model, captions, capsys):
    check(model, captions, Pretended(TRUTH, sees=False))
    output = capsys.readouterr().out
    for setting in CHOICES:
        assert f"\n{setting}: nothing can be concluded (" in output
    assert "\nNothing can be concluded: " in output


def test_every_setting_of_the_towers_is_tested_or_said_not_to_be(model, captions, capsys):
    settings = {one.name for one in fields(MediaFacts)} - {"text_only"}
    assert settings == {*CHOICES, *NOT_TESTED}
    check(model, captions, Pretended(TRUTH))
    output = capsys.readouterr().out
    for setting, why in NOT_TESTED.items():
        assert f"\n{setting}: not tested here ({why})\n" in output


def test_other_settings_hold_for_every_variant(model, captions):
    pretended = Pretended(TRUTH)
    check(model, captions, pretended, facts=MediaFacts(resize_filter="bicubic_antialias"))
    assert {facts.resize_filter for facts in pretended.facts} == {"bicubic_antialias"}


@pytest.mark.parametrize(
    "facts",
    [MediaFacts(vision_merger_norm="rmsnorm"), MediaFacts(pixel_stats="clip")],
)
def test_values_that_are_all_tried_are_not_for_the_user_to_give(model, captions, facts):
    with pytest.raises(ConfigError, match="--towers tries every value of"):
        check(model, captions, Pretended(TRUTH), facts=facts)


def test_a_checkpoint_without_a_chat_template_is_refused(model):
    tokenizer = Tokenizer.from_dir(model)
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        AnswerFinder(tokenizer)


def test_the_tokens_of_an_answer_are_its_own(model):
    tokenizer = Tokenizer.from_dir(model)
    finder = AnswerFinder(tokenizer)
    for answer in ("Red", "Ein Übergang von Rot zu Grün.", "7", "a\n\nb", "So</think>it is."):
        image = np.zeros((1, 1, 3), np.uint8)
        place = finder.find(Question(image=image, text="What is it?", answer=answer))
        assert tokenizer.decode(place.token_ids, skip_special_tokens=False) == answer
        # The end of the turn, and the beginning of another.
        assert place.num_after > 1


@pytest.mark.parametrize(
    ("template", "answer"),
    [
        pytest.param(
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}", "Red", id="changed"
        ),
        # The accent goes to the letter before it.
        pytest.param("e{{ messages[-1].content }}", "\u0301t\u0301", id="joined to what is before"),
        pytest.param("{{ messages[-1].content }}\u0301", "cafe", id="joined to what is after"),
    ],
)
def test_an_answer_that_does_not_stand_by_itself_is_refused(model, tmp_path, template, answer):
    tokenizer = Tokenizer.from_dir(model)
    tokenizer.chat_template = template
    question = Question(image=np.zeros((1, 1, 3), np.uint8), text="What?", answer=answer)
    with pytest.raises(RequestError, match=r"chat template|no tokens of its own"):
        AnswerFinder(tokenizer).find(question)


def test_a_caption_that_cannot_be_scored_names_its_row_before_anything_is_loaded(
    model, captions, tmp_path
):
    copy = tmp_path / "model"
    shutil.copytree(model, copy)
    config = json.loads((copy / "tokenizer_config.json").read_text())
    config["chat_template"] = "{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    (copy / "tokenizer_config.json").write_text(json.dumps(config))
    pretended = Pretended(TRUTH)
    with pytest.raises(ConfigError, match="row 1: the chat template"):
        check(copy, captions, pretended)
    assert not pretended.facts


@pytest.mark.parametrize("refused", ["checkpoint", "flag"])
def test_without_towers_there_is_nothing_to_check(model, captions, tmp_path, capsys, refused):
    text, flags = str(model), ["--text-only"]
    if refused == "checkpoint":
        text, flags = str(tmp_path / "text"), []
        assert main(["random-checkpoint", text, "--text-only"]) == 0
    capsys.readouterr()
    assert main(["check", "--towers", text, "--captions", captions, *flags]) == 1
    assert capsys.readouterr().err.startswith("error: --towers needs towers: ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"towers": True}, "--towers needs --captions FILE"),
        ({"captions": "x.jsonl"}, "are for --towers"),
        ({"dtype": "float32"}, "are for --towers"),
        ({"device": "cpu"}, "are for --towers"),
        ({"parallel": ParallelConfig(tensor_parallel_size=2)}, "are for --towers"),
    ],
)
def test_flags_that_would_do_nothing_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        TowerOptions(**options)
