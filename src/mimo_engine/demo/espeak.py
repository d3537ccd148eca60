"""Words spoken by eSpeak NG's voices, as a bank of clips: the only importer of its library.

eSpeak NG is GPL-3.0-or-later and comes with `espeakng-loader`, the extra `demo`. It keeps its state
in globals: one synthesiser a process, and one caller at a time. Part of that state, the tremor of
a voice, goes on from word to word and cannot be reset. So a bank is the same to the bit if it is
the first that its process makes, and sounds the same otherwise.
"""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from mimo_engine.demo.bank import ACCENTS, SPEAKERS, VOCABULARY, Bank
from mimo_engine.demo.task import Split
from mimo_engine.demo.tones import SAMPLE_RATE
from mimo_engine.errors import ConfigError
from mimo_engine.multimodal.resample import resample

try:
    import espeakng_loader
except ImportError:  # a bank that was saved elsewhere can be used without it
    espeakng_loader = None

__all__ = ["speech_bank"]

_RATES, _PITCHES = range(140, 191), range(35, 66)
"""Words a minute (eSpeak's own: 175), and its pitch (50 of 0 ... 99): one of each a voice."""
_QUIET = 0.01
"""Of a word's peak: softer samples at its ends are trimmed."""
_MARGIN_S = 0.01
_LEVEL = 0.1
"""Root mean square of a word, of full scale; a clip is limited to full scale."""


def speech_bank(split: Split, accents: Sequence[str] = ACCENTS) -> Bank:
    """All words in all voices of a split. Raises ConfigError without eSpeak."""
    synthesiser = _synthesiser()
    voices = [f"{accent}+{speaker}" for accent in accents for speaker in SPEAKERS[split]]
    rng = random.Random(split)
    pieces, lengths = [], []
    for voice in voices:
        synthesiser.choose(voice, rng.choice(_RATES), rng.choice(_PITCHES))
        for clip in _clips(synthesiser):
            pieces.append(clip)
            lengths.append(len(clip))
    return Bank(
        words=VOCABULARY,
        voices=tuple(voices),
        samples=np.concatenate(pieces),
        ends=np.cumsum(lengths, dtype=np.int64).reshape(len(voices), len(VOCABULARY)),
    )


def _clips(synthesiser: _Synthesiser) -> Iterator[np.ndarray]:
    """int16 [n] for each word of the vocabulary, in the voice that is chosen."""
    words = [_trimmed(synthesiser.speak(word), synthesiser.rate) for word in VOCABULARY]
    # Resampled together: a resampler takes longer to set up than to run over a word.
    joined = resample(np.concatenate(words), synthesiser.rate, SAMPLE_RATE)
    ends = np.cumsum([len(word) for word in words]) * SAMPLE_RATE // synthesiser.rate
    for clip in np.split(joined, ends[:-1]):
        level = _LEVEL / float(np.sqrt(np.mean(np.square(clip))))
        yield np.clip(np.rint(32768 * level * clip), -32768, 32767).astype(np.int16)


def _trimmed(word: np.ndarray, rate: int) -> np.ndarray:
    """The word with a breath of silence at either end, -1 ... 1."""
    loud = np.flatnonzero(np.abs(word) > _QUIET * np.abs(word).max())
    margin = np.zeros(round(_MARGIN_S * rate), np.float32)
    return np.concatenate([margin, word[loud[0] : loud[-1] + 1], margin])


@lru_cache(maxsize=1)
def _synthesiser() -> _Synthesiser:
    return _Synthesiser()


class _Synthesiser:
    """eSpeak NG through its C interface (speak_lib.h), one for the process."""

    _SYNCHRONOUS = 2
    _DO_NOT_EXIT = 1 << 15
    _RATE, _PITCH = 1, 3
    _UTF8 = 1
    _SEED = 1
    """Of its breath and tremor; by default the time of day."""
    _POSITION_IS_CHARACTER = 1
    _CALLBACK = ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )

    def __init__(self) -> None:
        if espeakng_loader is None:
            raise ConfigError(
                "tasks with speech need eSpeak NG or a saved bank: pip install 'mimo-engine[demo]'"
            )
        self._library: Any = ctypes.CDLL(espeakng_loader.get_library_path())
        self._library.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int),
            *(ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p, ctypes.c_void_p),
        ]
        data = espeakng_loader.get_data_path().encode()
        self.rate: int = self._library.espeak_Initialize(
            self._SYNCHRONOUS, 0, data, self._DO_NOT_EXIT
        )
        if self.rate <= 0:
            raise ConfigError("eSpeak NG did not start: reinstall espeakng-loader")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(self._SEED))
        self._blocks: list[np.ndarray] = []
        # Kept: the library holds no reference of its own.
        self._callback = self._CALLBACK(self._take)
        self._library.espeak_SetSynthCallback(self._callback)

    def choose(self, voice: str, words_a_minute: int, pitch: int) -> None:
        """The voice of what is spoken from now on."""
        codes = (
            self._library.espeak_SetVoiceByName(voice.encode()),
            self._library.espeak_SetParameter(self._RATE, words_a_minute, 0),
            self._library.espeak_SetParameter(self._PITCH, pitch, 0),
        )
        if any(codes):
            raise ConfigError(
                f"eSpeak NG has no voice {voice}: pip install --upgrade espeakng-loader"
            )

    def speak(self, text: str) -> np.ndarray:
        """float32 [n] at `rate`, -1 ... 1."""
        self._blocks.clear()
        data = text.encode()
        code = self._library.espeak_Synth(
            data, len(data) + 1, 0, self._POSITION_IS_CHARACTER, 0, self._UTF8, None, None
        )
        assert code == 0, f"eSpeak NG cannot say {text!r}: {code}"
        return np.concatenate(self._blocks).astype(np.float32) / 32768

    def _take(self, samples: Any, num_samples: int, _events: int | None) -> int:
        """The library's callback: samples are its own, and gone afterwards. 0: go on."""
        if samples and num_samples > 0:
            self._blocks.append(np.ctypeslib.as_array(samples, (num_samples,)).copy())
        return 0
