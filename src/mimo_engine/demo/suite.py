"""All tasks of the demo model, in one order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from mimo_engine.demo.image_tasks import IMAGE_TASKS
from mimo_engine.demo.sound_tasks import SOUND_TASKS, sound_tasks
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.task import Task
from mimo_engine.demo.text_tasks import TEXT_TASKS
from mimo_engine.demo.video_tasks import VIDEO_TASKS

__all__ = ["demo_tasks"]


def demo_tasks(banks: SpeechBanks | None = None) -> Sequence[Task]:
    """Text, images, video, sound; within a modality no two have one name.

    banks: of speech; None: those that this process keeps for all.
    """
    sounds = SOUND_TASKS if banks is None else sound_tasks(banks)
    # Frozen tasks cannot be assigned to, which nobody does and the protocol does not rule out.
    return cast("Sequence[Task]", (*TEXT_TASKS, *IMAGE_TASKS, *VIDEO_TASKS, *sounds))
