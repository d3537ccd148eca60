"""Where speech comes from: training's is synthesised, the test's ships with the package."""

from __future__ import annotations

from pathlib import Path

from mimo_engine.demo.bank import Bank
from mimo_engine.demo.espeak import speech_bank
from mimo_engine.demo.task import Split
from mimo_engine.errors import ConfigError

try:
    from mimo_engine.demo.held_out_speech import held_out_bank
except ImportError:  # without PyAV a bank that was saved elsewhere can be used
    held_out_bank = None

__all__ = ["SpeechBanks"]


class SpeechBanks:
    """The banks of both splits, each made when it is first asked for and then kept.

    With a folder they are also kept there, and a process that finds them makes nothing.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._banks: dict[Split, Bank] = {}

    def get(self, split: Split) -> Bank:
        """Raises ConfigError where training's bank must be made and the extra `demo` is not
        installed, or the test's must be decoded and PyAV is not."""
        if split not in self._banks:
            self._banks[split] = self._load_or_make(split)
        return self._banks[split]

    def _load_or_make(self, split: Split) -> Bank:
        if self._folder is None:
            return _made(split)
        path = self._folder / f"speech-{split}.npz"
        if path.exists():
            return Bank.load(path, split)
        bank = _made(split)
        self._folder.mkdir(parents=True, exist_ok=True)
        bank.save(path)
        return bank


def _made(split: Split) -> Bank:
    if split == "train":
        return speech_bank("train")
    if held_out_bank is None:
        raise ConfigError("held-out speech is Opus: pip install av, or save its bank elsewhere")
    return held_out_bank()
