"""MMMU: rows as the hub has them, prompts with a picture in its place, and what cannot be right."""

import asyncio
import base64
from io import BytesIO

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from eval_helpers import graded, reply, write_jsonl
from PIL import Image

from media_files import gradient, make_image
from mimo_engine.errors import ConfigError
from mimo_engine.eval.evaluation import Options
from mimo_engine.eval.mmmu import INSTRUCTION, mmmu, user_content
from mimo_engine.eval.runner import run_evaluation

PNG = make_image(gradient(40, 30))


def row(name, **changes):
    return {
        "id": f"validation_{name}",
        "question": "What is in <image 1>?",
        "options": "['a cat', \"the dog's bowl\"]",
        "answer": "B",
        "question_type": "multiple-choice",
        "image_1": {"bytes": base64.b64encode(PNG).decode(), "path": None},
        **changes,
    }


def load(tmp_path, *rows, **options):
    return mmmu(Options(data=write_jsonl(tmp_path / "rows.jsonl", rows), **options))


def content_of(item):
    (message,) = item.pose().request.body["messages"]
    assert message["role"] == "user"
    return message["content"]


def test_the_picture_stands_where_the_prompt_names_it(tmp_path):
    before, picture, after = content_of(load(tmp_path, row("Art_1")).items[0])
    assert before == {"type": "text", "text": "What is in "}
    data = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"
    assert picture == {"type": "image_url", "image_url": {"url": data}}
    assert after["text"] == f"?\nA. a cat\nB. the dog's bowl\n{INSTRUCTION}"
    assert "step by step" in INSTRUCTION
    assert "'Answer: $LETTER'" in INSTRUCTION


def test_without_a_tag_the_picture_comes_last_and_an_open_question_ends_with_answer():
    text, picture = user_content("How many?", [], "data:x")
    assert text["text"] == "How many?\nAnswer: "
    assert picture["image_url"] == {"url": "data:x"}


def test_a_question_that_begins_with_its_picture_has_no_text_before_it():
    picture, text = user_content("<image 1> How many?", [], "data:x")
    assert picture["type"] == "image_url"
    assert text["text"].startswith(" How many?")


def test_signs_of_comparison_are_no_tags_and_later_pictures_stay_text():
    before, _, after = user_content(
        "If x < 3 and y > 4, is <image 1> like <image 2>?", [], "data:x"
    )
    assert before["text"] == "If x < 3 and y > 4, is "
    assert after["text"] == " like <image 2>?\nAnswer: "


def test_items_come_in_the_order_of_their_ids_and_groups_are_subjects(tmp_path):
    names = ("Music_2", "Art_Theory_1", "Art_10", "Art_2")
    items = load(tmp_path, *map(row, names)).items
    assert [item.id for item in items] == [
        f"validation_{name}" for name in ("Art_10", "Art_2", "Art_Theory_1", "Music_2")
    ]
    assert [item.group for item in items] == ["Art", "Art", "Art_Theory", "Music"]
    assert len(load(tmp_path, *map(row, names), limit=3).items) == 3


def test_other_pictures_become_png_without_loss(tmp_path):
    pixels = gradient(16, 16)
    palette = Image.fromarray(pixels).quantize(16)
    (tmp_path / "picture.bmp").write_bytes(make_image(pixels, "BMP"))
    rows = [
        row("Art_1", image_1={"bytes": None, "path": "picture.bmp"}),
        row("Art_2", image_1={"bytes": base64.b64encode(make_image(palette, "GIF")).decode()}),
    ]
    shown = []
    for item in load(tmp_path, *rows).items:
        url = content_of(item)[1]["image_url"]["url"]
        image = Image.open(BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,"))))
        assert image.format == "PNG"
        shown.append(np.asarray(image))
    assert np.array_equal(shown[0], pixels)
    assert np.array_equal(shown[1], np.asarray(palette.convert("RGB")))


def test_rows_of_the_hubs_parquet_files_are_read(tmp_path):
    picture = {"bytes": PNG, "path": "validation_Art_1_1.png"}
    rows = [
        row(f"Art_{i}", image_1=picture, image_2=None, explanation="?", answer=letter)
        for i, letter in enumerate("AB")
    ]
    (tmp_path / "Art").mkdir()
    table = pyarrow.Table.from_pylist(rows)
    pyarrow.parquet.write_table(table, tmp_path / "Art" / "validation-00000-of-00001.parquet")
    items = mmmu(Options(data=str(tmp_path), files="*/validation-*")).items
    assert [item.pose().expected for item in items] == ["A", "B"]
    assert content_of(items[0])[1]["image_url"]["url"].endswith(base64.b64encode(PNG).decode())


def test_a_choice_is_right_by_its_letter(tmp_path):
    (item,) = load(tmp_path, row("Art_1")).items
    assert graded(item, "A is in it, but...\nAnswer: B").count == 1
    assert graded(item, "Answer: A").count == 0
    assert graded(item, "Answer: B").note == "stated"


@pytest.mark.parametrize("gold", ["A", "B"])
@pytest.mark.parametrize(
    ("content", "finish_reason"),
    [
        pytest.param(None, "length", id="null content: the thought was cut"),
        pytest.param("", "length", id="empty content"),
        pytest.param("<think>It must be (A) or (B)", "length", id="a cut thought in the content"),
        pytest.param(None, "stop", id="nothing at all"),
        pytest.param(["A"], "stop", id="content that is no text"),
    ],
)
def test_an_answer_without_text_is_wrong_whatever_the_gold(tmp_path, gold, content, finish_reason):
    (item,) = load(tmp_path, row("Art_1", answer=gold)).items
    grade = graded(item, content, finish_reason=finish_reason, reasoning_content="(A) or (B)")
    assert (grade.count, grade.note) == (0, "empty")
    (open_item,) = load(tmp_path, row("Art_1", options="[]", answer="A")).items
    assert graded(open_item, content, finish_reason=finish_reason).count == 0


def test_an_answer_that_was_cut_before_it_chose_is_not_guessed_for(tmp_path):
    (item,) = load(tmp_path, row("Art_1", answer="A")).items
    assert graded(item, "Let me see").note == "guessed"
    assert graded(item, "Let me see").count == 1
    cut = graded(item, "Let me see", finish_reason="length")
    assert (cut.count, cut.note) == (0, "cut")
    assert graded(item, "(A), as I see", finish_reason="length").count == 1


def test_an_open_question_may_have_several_right_answers(tmp_path):
    (item,) = load(tmp_path, row("Art_1", options="[]", answer="['12.5', 'a dozen']")).items
    assert item.pose().expected == ["12.5", "a dozen"]
    assert graded(item, "I count.\nAnswer: A dozen!").count == 1
    assert graded(item, "Answer: 12.50").count == 1
    assert graded(item, "Answer: 13").count == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": ""}, "question must be a string"),
        ({"options": "['a', "}, "options is no list"),
        ({"options": "3"}, "options must be a list"),
        ({"options": str(["x"] * 27)}, "options has 27 entries"),
        ({"answer": "C"}, "answer is 'C'"),
        ({"answer": "AB"}, "answer is 'AB', which is none of the options' letters"),
        ({"answer": None}, "answer must be a string"),
        ({"image_1": None}, "image_1 must be a path"),
        ({"image_1": {"bytes": "no base64!"}}, r"image_1\.bytes must be base64"),
        ({"image_1": "missing.png"}, r"missing\.png is not a file"),
        ({"image_1": "a\0b"}, "is not a file"),
        ({"id": None}, "id must be a string"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=rf"rows\.jsonl, row 2: .*({message})"):
        load(tmp_path, row("Art_1"), row("Art_2", **changes))


def test_a_damaged_picture_is_found_when_its_turn_comes(tmp_path):
    (item,) = load(tmp_path, row("Art_1", image_1={"bytes": "AAAA"})).items
    with pytest.raises(ConfigError, match="row 1: the picture cannot be read"):
        item.pose()


def test_a_picture_that_has_gone_is_one_wrong_answer_and_the_run_goes_on(tmp_path):
    for name in ("1.png", "2.png"):
        (tmp_path / name).write_bytes(PNG)
    evaluation = load(tmp_path, row("Art_1", image_1="1.png"), row("Art_2", image_1="2.png"))
    (tmp_path / "1.png").unlink()

    async def ask(_):
        return reply("Answer: B")

    outcomes = asyncio.run(run_evaluation(evaluation, ask, concurrency=2))
    assert [outcome.grade.count for outcome in outcomes] == [0, 1]
    assert "1.png cannot be read" in outcomes[0].error
