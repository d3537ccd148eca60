"""Words in voices, ready to be cut and pasted into examples: what there is, and how it is kept.

A speaker is a voice variant of eSpeak (its pitch, formants and breath), a voice a speaker with an
accent of English. The two splits have no speaker in common; accents they share. A bank holds every
word in every voice of one split, so that nothing is synthesised while examples are drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimo_engine.demo.task import Split
from mimo_engine.errors import ConfigError

__all__ = ["ACCENTS", "SPEAKERS", "VOCABULARY", "Bank"]

VOCABULARY = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("apple", "bridge", "coffee", "dragon", "forest", "garden"),
    *("island", "monkey", "orange", "pepper", "window", "yellow"),
)
ACCENTS = ("en", "en-us", "en-us-nyc", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan")
SPEAKERS: dict[Split, tuple[str, ...]] = {
    "train": (
        *("m1", "m2", "m4", "m5", "m6", "m7", "m8", "f1", "f3", "f4", "f5", "Alex", "Andy"),
        *("Annie", "Gene", "Lee", "Mario", "Mike", "Denis", "Hugo", "Diogo", "linda", "belinda"),
        *("adam", "edward", "rob", "steph", "paul", "travis", "david", "zac", "f2", "anika"),
        "Alicia",
    ),
    "test": ("m3", "Michael", "Nguyen", "Andrea", "aunty", "pablo"),
}
"""Many of eSpeak's variants are another one by another name, linda and belinda for one. None of the
test's is: the nearest to one of training's is m3 to Mike, whose third and fourth formants differ by
4 and 5 % and whose pitch by a fifth. Training has the extremes: held out, zac (all formants 45 %
up) and Alicia (the second by half) are voices that a small net understands a third of the time."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bank:
    """Each word in each voice of a split, trimmed, at 24 kHz and one level."""

    words: Sequence[str]
    voices: Sequence[str]
    samples: np.ndarray
    """int16, clip after clip: all words of the first voice, then of the next."""
    ends: np.ndarray
    """int64 [voices, words]: where in `samples` each clip ends, and the next begins."""

    def clip(self, voice: str, word: str) -> np.ndarray:
        """float32 [n], -1 ... 1."""
        index = self.voices.index(voice) * len(self.words) + self.words.index(word)
        start = int(self.ends.flat[index - 1]) if index else 0
        return self.samples[start : int(self.ends.flat[index])].astype(np.float32) / 32768

    def save(self, path: Path) -> None:
        """Replaces the file at once: a reader sees the old one or the whole new one."""
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            np.savez(
                file,
                words=np.array(self.words),
                voices=np.array(self.voices),
                samples=self.samples,
                ends=self.ends,
            )
        part.replace(path)

    @staticmethod
    def load(path: Path, split: Split) -> Bank:
        """What `save` wrote. Raises ConfigError for other words than today's, and for speakers that
        are not this split's."""
        with np.load(path, allow_pickle=False) as file:
            bank = Bank(
                words=tuple(map(str, file["words"])),
                voices=tuple(map(str, file["voices"])),
                samples=file["samples"],
                ends=file["ends"],
            )
        if bank.words != VOCABULARY:
            raise ConfigError(f"{path} holds other words than the tasks ask for: delete it")
        if not {voice.rpartition("+")[2] for voice in bank.voices} <= set(SPEAKERS[split]):
            raise ConfigError(f"{path} holds speakers of another split: delete it")
        return bank
