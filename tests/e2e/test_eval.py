"""`mimo-engine eval` against the real server: scripted answers, and media on random weights.

The second kind says nothing about scores: it says that a run ends, and that every request was one
that the server takes.
"""

import asyncio
import base64
import json
from contextlib import aclosing

import numpy as np
import pytest
from fake_server import MODEL, FakeServer, scripted
from omni_server import make_omni, omni_server

from media_files import gradient, make_audio, make_image, tone
from mimo_engine.cli.main import main
from mimo_engine.config.engine import SchedulerConfig
from mimo_engine.demo.task import Example
from mimo_engine.eval.client import ApiClient
from mimo_engine.eval.demo_sets import demo_evaluation
from mimo_engine.eval.evaluation import Options
from mimo_engine.eval.runner import run_evaluation

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        },
    },
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    scheduler = SchedulerConfig(max_model_len=16384)
    with FakeServer(tmp_path_factory.mktemp("model"), scheduler=scheduler) as server:
        yield server


@pytest.fixture(scope="module")
def omni(tmp_path_factory):
    model = make_omni(tmp_path_factory.mktemp("omni") / "model", "--num-layers", "2")
    with omni_server(model) as server:
        yield server


@pytest.fixture
def evaluate(tmp_path):
    """Runs the command; returns its exit code and its report."""

    def run(server, task, *options):
        output = tmp_path / "report.json"
        code = main(["eval", task, "--url", server.url, "--output", str(output), *options])
        return code, json.loads(output.read_text() or "null")

    return run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def gsm8k_file(tmp_path, answers, **changes):
    """Items that the engine answers with `answers`; right is 10."""
    shots = [{"question": f"Of {i}?", "answer": f"It is {i}.\n#### {i}"} for i in range(5)]
    items = [{"question": scripted(text), "answer": "#### 10"} for text in answers]
    return write(tmp_path / "gsm8k.jsonl", shots + items)


def counts(report):
    return [item["count"] for item in report["items"]]


def test_gsm8k_completions_stop_where_the_next_question_would_begin(tmp_path, server, evaluate):
    texts = [" 5+5=10\n#### 10\n\nQuestion: And 11?", " It is 9.", " no idea"]
    code, report = evaluate(server, "gsm8k", "--data", gsm8k_file(tmp_path, texts))
    assert code == 0
    assert counts(report) == [1, 0, 0]
    assert report["model"] == MODEL
    assert report["items"][0]["message"]["content"] == " 5+5=10\n#### 10\n\n"
    (group,) = report["groups"]
    assert group["score"] == pytest.approx(1 / 3)
    assert group["notes"] == {"no number": 1}
    assert group["num_failed"] == 0


def test_gsm8k_chat_counts_thoughts_that_were_cut_as_wrong(tmp_path, server, evaluate):
    texts = [
        "<think>Five and five.</think>It is 10.",
        "<think>It is 10, is it not? " + 40 * "10 it is. ",
        "",
    ]
    code, report = evaluate(
        server,
        "gsm8k-chat",
        *("--data", gsm8k_file(tmp_path, texts)),
        *("--thinking", "on", "--max-tokens", "64"),
    )
    assert code == 0
    assert counts(report) == [1, 0, 0]
    assert [item["note"] for item in report["items"]] == ["", "empty", "empty"]
    (group,) = report["groups"]
    assert (group["num_cut"], group["num_failed"]) == (1, 0)
    assert report["items"][1]["message"]["reasoning_content"].startswith("It is 10, is it not?")


def test_the_table_and_the_first_failure_are_printed(tmp_path, server, evaluate, capsys):
    data = gsm8k_file(tmp_path, ["10", 3000 * " and the river was high", "10"])
    code, report = evaluate(server, "gsm8k", "--data", data)
    assert code == 0
    assert counts(report) == [1, 0, 1]
    captured = capsys.readouterr()
    head, line = captured.out.splitlines()
    assert head.split()[:5] == ["group", "items", "failed", "cut", "accuracy"]
    assert line.split()[:5] == ["gsm8k", "3", "1", "0", "0.6667"]
    failure = captured.err.splitlines()[-1]
    assert failure.startswith(
        "1 of 3 requests failed and score as wrong; the first, item 6: HTTP 400"
    )


def test_a_run_without_one_answer_exits_with_1(tmp_path, server, evaluate, capsys):
    data = gsm8k_file(tmp_path, ["10", "10"])
    code, report = evaluate(server, "gsm8k", "--data", data, "--model", "another")
    assert code == 1
    assert counts(report) == [0, 0]
    assert "The model `another` does not exist" in capsys.readouterr().err


def test_a_server_that_is_not_there_is_one_line(tmp_path, capsys):
    data = gsm8k_file(tmp_path, ["10"])
    assert main(["eval", "gsm8k", "--data", data, "--url", "http://127.0.0.1:9"]) == 1
    assert capsys.readouterr().err.startswith("error: no OpenAI-compatible server answers at")


def test_an_output_that_cannot_be_written_is_found_out_first(tmp_path, capsys):
    output = str(tmp_path / "missing" / "report.json")
    assert main(["eval", "demo", "--output", output]) == 1
    assert capsys.readouterr().err.startswith(f"error: --output {output} cannot be written")


def test_a_full_queue_is_waited_for(tmp_path, tmp_path_factory, evaluate):
    scheduler = SchedulerConfig(max_num_seqs=1, max_queue_len=1, max_model_len=16384)
    directory = tmp_path_factory.mktemp("small")
    with FakeServer(directory, scheduler=scheduler, step_s=0.005) as server:
        data = gsm8k_file(tmp_path, ["It is 10."] * 12)
        code, report = evaluate(server, "gsm8k", "--data", data, "--concurrency", "12")
    assert code == 0
    assert counts(report) == [1] * 12


def test_tool_calls_are_compared_as_the_server_parses_them(tmp_path, server, evaluate):
    def says(city, days):
        return (
            f"<tool_call><function=get_weather><parameter=city>{city}</parameter>"
            f"<parameter=days>{days}</parameter></function></tool_call>"
        )

    expected = {"name": "get_weather", "arguments": {"city": "Rome", "days": 3}}
    cases = [
        (says("Rome", 3), [expected], ""),
        (says("Oslo", 3), [expected], "wrong arguments"),
        ("I do not know.", [expected], "too few calls"),
        ("I do not know.", [], ""),
        (says("Rome", 3) + "\n" + says("Rome", 3), [expected], "too many calls"),
    ]
    rows = [
        {
            "messages": [{"role": "user", "content": "How is it?" + scripted(text)}],
            "tools": [TOOL],
            "calls": calls,
        }
        for text, calls, _ in cases
    ]
    code, report = evaluate(server, "tools", "--data", write(tmp_path / "tools.jsonl", rows))
    assert code == 0
    assert [item["note"] for item in report["items"]] == [note for _, _, note in cases]
    assert counts(report) == [int(not note) for _, _, note in cases]


def test_mmmu_with_pictures_runs_to_its_end_with_and_without_thinking(tmp_path, omni, evaluate):
    rows = [
        {
            "id": f"validation_Art_{i}",
            "question": "What is it? <image 1> Look.",
            "options": "[]" if i == 3 else "['red', 'blue']",
            "answer": "A",
            "image_1": {"bytes": base64.b64encode(make_image(gradient(96, 64 + 32 * i))).decode()},
        }
        for i in range(4)
    ]
    data = write(tmp_path / "mmmu.jsonl", rows)
    for thinking in ("on", "off"):
        code, report = evaluate(
            omni, "mmmu", "--data", data, "--thinking", thinking, "--max-tokens", "6"
        )
        assert code == 0
        assert report["groups"][0]["num_failed"] == 0
        assert all(item["prompt_tokens"] > 6 for item in report["items"])
        assert report["groups"][0]["num_cut"] == 4


def test_asr_runs_to_its_end(tmp_path, omni, evaluate):
    for i in range(3):
        (tmp_path / f"{i}.wav").write_bytes(make_audio(tone(0.4 + 0.3 * i)))
    rows = [{"audio": f"{i}.wav", "text": "one two three"} for i in range(3)]
    data = write(tmp_path / "asr.jsonl", rows)
    code, report = evaluate(omni, "asr", "--data", data, "--max-tokens", "6")
    assert code == 0
    assert report["metric"] == "word error rate"
    (group,) = report["groups"]
    assert group["num_failed"] == 0
    assert group["score"] == sum(counts(report)) / 9


class MediaTask:
    """One example of each kind of part that the demo's tasks have."""

    name, modality, definition, baseline = "parts", "video", "No answer is right.", 0.0

    def make(self, rng, split):
        frames = np.full((6, 64, 64, 3), rng.randrange(256), np.uint8)
        sound = (np.zeros(24_000, np.float32), 24_000)
        content = [
            {"type": "image", "image": frames[0]},
            {"type": "audio", "audio": sound},
            {"type": "video", "video": (frames, 2.0)},
            {"type": "video", "video": (frames, 2.0), "audio": sound},
            {"type": "text", "text": "What is it?"},
        ]
        return Example(messages=[{"role": "user", "content": content}], answer={"content": "?"})

    def is_right(self, example, answer):
        return False


def test_the_demos_media_are_what_the_server_takes(omni):
    evaluation = demo_evaluation([MediaTask()], Options(limit=3, max_tokens=3))

    async def run():
        async with aclosing(ApiClient(omni.url, timeout_s=60)) as client:
            return await run_evaluation(
                evaluation, lambda request: client.ask(MODEL, request), concurrency=2
            )

    outcomes = asyncio.run(run())
    assert [outcome.error for outcome in outcomes] == [None] * 3
