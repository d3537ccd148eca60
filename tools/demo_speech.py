"""Make the held-out speech that ships: src/mimo_engine/demo/data/speech. Needs the extra `demo`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from mimo_engine.demo.espeak import speech_bank
from mimo_engine.demo.held_out_speech import CLIPS_FILE, SPEECH_DIR, held_out_bank
from mimo_engine.demo.tones import SAMPLE_RATE

BIT_RATE = 32_000
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from media_files import make_audio  # noqa: E402


def main() -> None:
    bank = speech_bank("test")
    SPEECH_DIR.mkdir(parents=True, exist_ok=True)
    for old in SPEECH_DIR.glob("*.opus"):
        old.unlink()
    ends = {}
    for voice in bank.voices:
        clips = [bank.clip(voice, word) for word in bank.words]
        ends[voice] = np.cumsum([len(clip) for clip in clips]).tolist()
        sound = np.concatenate(clips)
        file = make_audio(
            sound, rate=SAMPLE_RATE, codec="libopus", container="ogg", bit_rate=BIT_RATE
        )
        (SPEECH_DIR / f"{voice}.opus").write_bytes(file)
    lines = [f"  {json.dumps(voice)}: {json.dumps(own)}" for voice, own in ends.items()]
    words = json.dumps(bank.words)
    text = f'{{"words": {words},\n "ends": {{\n' + ",\n".join(lines) + "\n }}\n"
    (SPEECH_DIR / CLIPS_FILE).write_text(text, encoding="utf-8")
    found = held_out_bank()
    seconds = len(found.samples) / SAMPLE_RATE
    size = sum(path.stat().st_size for path in SPEECH_DIR.iterdir())
    print(f"{len(found.voices)} voices, {seconds:.0f} s, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
