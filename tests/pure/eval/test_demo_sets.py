"""The demo's tasks as evaluations: media arrive as they were drawn, and examples are held out."""

import base64
import json
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from eval_helpers import graded, reply

from media_config import processor_config
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.task import Example
from mimo_engine.eval.demo_sets import NUM_EXAMPLES, demo_evaluation, demo_sets, wire_message
from mimo_engine.eval.evaluation import Options
from mimo_engine.eval.media_uris import video_uri, wav_uri
from mimo_engine.multimodal.image import load_image
from mimo_engine.multimodal.inputs import VideoOptions, read_input
from mimo_engine.multimodal.sound import file_blocks
from mimo_engine.multimodal.video import video_features, video_frames_features
from mimo_engine.multimodal.video_file import RgbConverter, decode_frames, scan_video

CONFIG, LIMITS = processor_config(), MediaLimits()


def noise(*shape):
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def sound(num_samples):
    return np.random.default_rng(1).uniform(-1, 1, num_samples).astype(np.float32)


def file_of(uri):
    return base64.b64decode(uri.partition(";base64,")[2], validate=True)


@dataclass(frozen=True, kw_only=True)
class EchoTask:
    """Right is the number that the question names."""

    name: str = "echo"
    modality: str = "text"
    definition: str = "Say the number."
    baseline: float = 0.1

    def make(self, rng, split):
        number = rng.randrange(10)
        return Example(
            messages=[{"role": "user", "content": f"{split}: say {number}"}],
            answer={"content": str(number), "reasoning_content": "", "tool_calls": []},
            tools=[{"type": "function"}],
            thinks=False,
            target=number,
        )

    def is_right(self, example, answer):
        return answer.get("content") == str(example.target)


@pytest.mark.parametrize("size", [(28, 28), (33, 47), (64, 96), (1, 3)])
def test_a_picture_arrives_as_it_was_drawn(size):
    picture = noise(*size, 3)
    wired = wire_message({"role": "user", "content": [{"type": "image", "image": picture}]})
    (part,) = wired["content"]
    assert np.array_equal(load_image(file_of(part["image_url"]["url"]), CONFIG, LIMITS), picture)


@pytest.mark.parametrize("num_samples", [1, 2400, 100_001])
def test_sound_arrives_as_it_was_drawn(num_samples):
    samples = sound(num_samples)
    blocks = list(file_blocks(file_of(wav_uri(samples, 24_000))))
    assert {block.rate for block in blocks} == {24_000}
    assert np.array_equal(np.concatenate([block.samples for block in blocks]), samples)


@pytest.mark.parametrize("fps", [0.5, 1, 2.0, 3, 7.3, 23.976, 29.97, 30])
@pytest.mark.parametrize("shape", [(2, 28, 28), (7, 33, 47), (16, 64, 96)])
def test_every_frame_of_a_video_arrives_as_it_was_drawn_with_its_rate(shape, fps):
    frames = noise(*shape, 3)
    file = file_of(video_uri(frames, fps))
    scan = scan_video(file)
    assert (scan.num_frames, scan.fps) == (len(frames), pytest.approx(fps, abs=1e-6))
    converter = RgbConverter(turns=True)
    decoded = [converter.convert(frame) for frame in decode_frames(file, LIMITS)]
    assert np.array_equal(np.stack(decoded), frames)


@pytest.mark.parametrize("num_frames", [1, 2, 5, 8, 40])
@pytest.mark.parametrize("fps", [1.0, 2.0, 3.0, 25.0])
def test_the_model_sees_all_frames_of_a_video_file_as_it_does_those_of_an_array(num_frames, fps):
    frames = noise(num_frames, 64, 64, 3)
    part = {"type": "video", "video": (frames, fps)}
    (wired,) = wire_message({"role": "user", "content": [part]})["content"]
    asked = read_input(wired, "part")
    seen = video_features(
        file_of(wired["video_url"]["url"]),
        CONFIG,
        LIMITS,
        asked.options,
        dtype="float32",
    )
    drawn = video_frames_features(frames, CONFIG, LIMITS, VideoOptions(), dtype="float32", fps=fps)
    assert seen.grid == drawn.grid
    assert seen.timestamps[::2] == pytest.approx(drawn.timestamps[::2])
    assert np.array_equal(seen.shared.arrays[0], drawn.shared.arrays[0])


def test_the_sound_of_a_video_goes_beside_it():
    samples = sound(2400)
    part = {"type": "video", "video": (noise(4, 28, 28, 3), 2.0), "audio": (samples, 24_000)}
    (wired,) = wire_message({"role": "user", "content": [part]})["content"]
    (block,) = file_blocks(file_of(wired["audio_url"]["url"]))
    assert np.array_equal(block.samples, samples)
    assert read_input(wired, "part").audio is not None


def test_text_and_other_turns_go_as_they_are():
    for message in (
        {"role": "tool", "content": "4", "tool_call_id": "a"},
        {"role": "assistant", "content": None, "tool_calls": [{"id": "a"}]},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
    ):
        assert wire_message(message) == message


def test_an_item_asks_what_the_example_says():
    item = demo_evaluation([EchoTask()], Options(limit=1)).items[0]
    question = item.pose()
    number = question.expected["content"]
    assert question.request.body == {
        "messages": [{"role": "user", "content": f"test: say {number}"}],
        "tools": [{"type": "function"}],
        "temperature": 0,
        "top_p": 1,
        "max_tokens": 512,
        "chat_template_kwargs": {"enable_thinking": False},
    }
    assert question.grade(reply(number)).count == 1
    assert question.grade(reply("no")).count == 0


@pytest.mark.parametrize("content", [None, "", "<think>3"])
def test_an_empty_answer_is_wrong(content):
    item = demo_evaluation([EchoTask()], Options(limit=1)).items[0]
    assert graded(item, content).count == 0


def test_items_differ_from_each_other_and_are_the_same_each_time():
    asked = [
        [item.pose().request.body for item in demo_evaluation([EchoTask()], Options()).items]
        for _ in range(2)
    ]
    assert asked[0] == asked[1]
    assert len(asked[0]) == NUM_EXAMPLES >= 300
    assert len({str(body) for body in asked[0]}) == 10


def test_baselines_and_definitions_stand_by_the_tasks_name():
    found = demo_evaluation([EchoTask(), EchoTask(name="other", baseline=0.2)], Options(limit=2))
    groups = [item.group for item in found.items]
    assert groups == ["text/echo", "text/echo", "text/other", "text/other"]
    assert found.baselines == {"text/echo": 0.1, "text/other": 0.2}
    assert set(found.definitions.values()) == {"Say the number."}


def test_the_demos_own_tasks_are_a_group_of_300_items_each():
    tasks = demo_tasks()
    assert {task.modality for task in tasks} == {"text", "image", "audio", "video"}
    evaluation = demo_sets(Options())
    sizes = Counter(item.group for item in evaluation.items)
    assert len(sizes) == len(tasks)
    assert set(sizes.values()) == {300}
    assert set(evaluation.baselines) == set(sizes)


# A bank of speech takes half a minute to make.
@pytest.mark.parametrize(
    "task",
    [task for task in demo_tasks() if not task.name.startswith("spoken")],
    ids=lambda task: f"{task.modality}/{task.name}",
)
def test_the_right_answer_of_each_task_is_right_and_an_empty_one_is_not(task):
    (item,) = demo_evaluation([task], Options(limit=1)).items
    question = item.pose()
    assert question.grade(reply(**question.expected)).count == 1
    assert question.grade(reply(None)).count == 0
    json.dumps(question.request.body)
