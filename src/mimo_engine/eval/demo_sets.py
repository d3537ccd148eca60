"""The demo model's tasks as evaluations: fresh examples of their held-out split.

An example holds media as arrays; over HTTP they are files, encoded without loss, and every frame of
a video is asked to be looked at, as in training.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from mimo_engine.demo.suite import demo_tasks
from mimo_engine.demo.task import Example, Task, task_name
from mimo_engine.eval.api import Reply, chat_request
from mimo_engine.eval.evaluation import Evaluation, Grade, Item, Options, Question
from mimo_engine.eval.media_uris import png_uri, video_uri, wav_uri

__all__ = ["demo_evaluation", "demo_sets", "wire_message"]

NUM_EXAMPLES = 300
"""Of a task: the interval is then at most six points to either side."""
ANSWER_TOKENS = 512
"""Thoughts of the demo model are short."""


def demo_sets(options: Options) -> Evaluation:
    """All tasks of the demo model. Groups are tasks, such as image/colour."""
    return demo_evaluation(demo_tasks(), options)


def demo_evaluation(tasks: Sequence[Task], options: Options) -> Evaluation:
    """`options.limit` is of each task."""
    num_examples = NUM_EXAMPLES if options.limit is None else options.limit
    max_tokens = options.tokens_for(ANSWER_TOKENS)
    one_at_a_time = threading.Lock()
    return Evaluation(
        metric="accuracy",
        items=[
            _item(task, index, max_tokens, one_at_a_time)
            for task in tasks
            for index in range(num_examples)
        ],
        settings={"max_tokens": max_tokens},
        baselines={task_name(task): task.baseline for task in tasks},
        definitions={task_name(task): task.definition for task in tasks},
    )


def wire_message(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message as the API takes it: arrays of media as files."""
    content = message.get("content")
    if not isinstance(content, Sequence) or isinstance(content, str):
        return message
    return {**message, "content": [_wire_part(part) for part in content]}


def _item(task: Task, index: int, max_tokens: int, one_at_a_time: threading.Lock) -> Item:
    """one_at_a_time: items are posed on several threads, and tasks know of one."""
    name = f"{task_name(task)}/{index}"

    def pose() -> Question:
        with one_at_a_time:
            example = task.make(random.Random(f"eval {name}"), "test")
        return Question(
            request=chat_request(
                [wire_message(message) for message in example.messages],
                max_tokens=max_tokens,
                thinks=example.thinks,
                tools=example.tools,
            ),
            expected=dict(example.answer),
            grade=partial(_grade, task, example),
        )

    return Item(id=name, group=task_name(task), pose=pose)


def _grade(task: Task, example: Example, reply: Reply) -> Grade:
    # Without the thought that a server without a reasoning parser leaves in the content.
    message = {**reply.message, "content": reply.text}
    answer = {key: message[key] for key in ("content", "tool_calls") if message.get(key)}
    note = "" if answer else "empty"
    return Grade(count=int(task.is_right(example, message)), answer=answer, note=note)


def _wire_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    match part["type"]:
        case "image":
            return {"type": "image_url", "image_url": {"url": png_uri(part["image"])}}
        case "audio":
            return {"type": "audio_url", "audio_url": {"url": wav_uri(*part["audio"])}}
        case "video":
            video = {"type": "video_url", "video_url": _wire_video(*part["video"])}
            if "audio" in part:
                video["audio_url"] = {"url": wav_uri(*part["audio"])}
            return video
        case _:
            return part


def _wire_video(frames: np.ndarray, fps: float) -> Mapping[str, Any]:
    """Decoded frames get a repetition of the last one where a step lacks one; files do not."""
    shown = np.concatenate([frames, frames[-1:]]) if len(frames) % 2 else frames
    return {"url": video_uri(shown, fps), "min_frames": len(shown), "max_frames": len(shown)}
