"""Clips with transcripts: what is sent, and which share of the words is wrong."""

import base64

import pyarrow
import pyarrow.parquet
import pytest
from eval_helpers import graded, write_jsonl

from media_files import make_audio, tone
from mimo_engine.config.server import TRANSCRIPTION_PROMPT
from mimo_engine.errors import ConfigError
from mimo_engine.eval.asr import asr
from mimo_engine.eval.evaluation import Options

CLIP = make_audio(tone(0.2))


@pytest.fixture
def data(tmp_path):
    (tmp_path / "clip.wav").write_bytes(CLIP)
    rows = [
        {"audio": "clip.wav", "text": "One, two, three!"},
        {"audio": {"bytes": base64.b64encode(CLIP).decode()}, "text": "FOUR"},
    ]
    return write_jsonl(tmp_path / "rows.jsonl", rows)


def test_a_clip_is_sent_as_it_is_and_the_instruction_after_it(data):
    for item in asr(Options(data=data)).items:
        (message,) = item.pose().request.body["messages"]
        clip, text = message["content"]
        assert clip["type"] == "audio_url"
        _, _, content = clip["audio_url"]["url"].partition("base64,")
        assert base64.b64decode(content) == CLIP
        assert text == {"type": "text", "text": TRANSCRIPTION_PROMPT}


def test_an_item_counts_the_words_of_its_reference_and_the_wrong_ones_of_the_answer(data):
    evaluation = asr(Options(data=data))
    assert evaluation.metric == "word error rate"
    assert [item.total for item in evaluation.items] == [3, 1]
    first = evaluation.items[0]
    assert graded(first, "one two three").count == 0
    assert graded(first, "One too three four").count == 2


def test_an_answer_without_text_lacks_every_word(data):
    for content in (None, "", "<think>One two thr"):
        grade = graded(asr(Options(data=data)).items[0], content)
        assert (grade.count, grade.note) == (3, "empty")


def test_rows_of_the_hubs_parquet_files_are_read(tmp_path):
    row = {"file": "x", "audio": {"bytes": CLIP, "path": "1.wav"}, "text": "A B", "speaker_id": 3}
    path = tmp_path / "test.parquet"
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row, row]), path)
    items = asr(Options(data=str(path), limit=1)).items
    assert [item.total for item in items] == [2]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "no.wav", "text": "a"}, r"audio: .*no\.wav is not a file"),
        ({"audio": 3, "text": "a"}, "audio must be a path"),
        ({"audio": "clip.wav"}, "text must be a string"),
        ({"audio": "clip.wav", "text": "?!"}, "text has no words"),
    ],
)
def test_a_row_that_cannot_be_asked_is_named(tmp_path, data, row, message):
    bad = write_jsonl(tmp_path / "bad.jsonl", [row])
    with pytest.raises(ConfigError, match=rf"bad\.jsonl, row 1: {message}"):
        asr(Options(data=bad))
