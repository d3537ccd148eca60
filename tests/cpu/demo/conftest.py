"""A tokenizer and a geometry that the tests of the demo's training share."""

import pytest

from mimo_engine.demo.geometry import geometry
from mimo_engine.demo.image_tasks import IMAGE_TASKS
from mimo_engine.demo.sound_tasks import SOUND_TASKS
from mimo_engine.demo.text_tasks import TEXT_TASKS
from mimo_engine.demo.tokenizer import learn_merges, make_tokenizer, task_texts
from mimo_engine.demo.video_tasks import VIDEO_TASKS

# Speech is left out: its banks take long to make, and nothing here depends on what is said.
TASKS = (
    *TEXT_TASKS,
    *IMAGE_TASKS,
    *VIDEO_TASKS,
    *(task for task in SOUND_TASKS if not task.name.startswith("spoken")),
)


@pytest.fixture(scope="session")
def tasks():
    return TASKS


@pytest.fixture(scope="session")
def merges(tasks):
    return learn_merges(task_texts(tasks, per_task=10, seed=0))


@pytest.fixture(scope="session")
def tokenizer(merges):
    return make_tokenizer(merges)[0]


@pytest.fixture(scope="session")
def shape(merges):
    return geometry(make_tokenizer(merges)[1].ids)
