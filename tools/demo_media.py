"""Make the pictures and sounds of examples/media: examples of the demo model's tasks, of the test
split, as files that a person might have. Needs the extra `demo` (speech)."""

from __future__ import annotations

import io
import random
import sys
from pathlib import Path

from PIL import Image

from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.suite import demo_tasks

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from media_files import make_audio, make_video  # noqa: E402

FILES = {
    "digits.png": ("image", "digits", 0),
    "digits.opus": ("audio", "spoken_digits", 2),
    "flash_and_beep.mkv": ("video", "first", 0),
}
"""Task, by modality and name, and the number of the example."""


def encoded(part: dict) -> bytes:
    """One media part of an example as PNG, Opus, or H.264 with Opus."""
    if part["type"] == "image":
        buffer = io.BytesIO()
        Image.fromarray(part["image"]).save(buffer, "PNG")
        return buffer.getvalue()
    samples, rate = part["audio"]
    if part["type"] == "audio":
        return make_audio(samples, rate=rate, codec="libopus", container="ogg")
    frames, fps = part["video"]
    return make_video(
        list(frames),
        fps=fps,
        codec="libx264rgb",
        pixel_format="rgb24",
        container="matroska",
        options={"crf": "8"},
        sound=samples[None],
        sound_rate=rate,
        sound_codec="libopus",
    )


def main() -> None:
    folder = ROOT / "examples" / "media"
    folder.mkdir(parents=True, exist_ok=True)
    tasks = {(task.modality, task.name): task for task in demo_tasks(SpeechBanks(None))}
    for name, (modality, task, number) in FILES.items():
        example = tasks[modality, task].make(random.Random(f"readme {number}"), "test")
        content = example.messages[-1]["content"]
        (part,) = (part for part in content if part["type"] != "text")
        (folder / name).write_bytes(encoded(part))
        (text,) = (part["text"] for part in content if part["type"] == "text")
        print(f"{name}: {text} {example.answer['content']}")


if __name__ == "__main__":
    main()
