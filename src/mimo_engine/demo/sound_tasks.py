"""Four tasks about one clip of sound, two of them with speech."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from mimo_engine.demo.bank import SPEAKERS, VOCABULARY
from mimo_engine.demo.media_task import Drawn, MediaTask, noise_generator
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.task import Split
from mimo_engine.demo.tones import SAMPLE_RATE, add_sounds, glide, random_pitch, silence

__all__ = ["SOUND_TASKS", "sound_tasks"]

_DIGITS, _WORDS = VOCABULARY[:10], VOCABULARY[10:]
_MAX_DIGITS, _MAX_WORDS = 3, 2
_MAX_BEEPS = 5
_SHAPES = ("rising", "falling", "steady")


def _sound_part(clip: np.ndarray) -> dict[str, object]:
    return {"type": "audio", "audio": (clip, SAMPLE_RATE)}


def _draw_beeps(rng: random.Random, split: Split) -> Drawn:
    """The clip's length says nothing of the number."""
    count, pitch = rng.randint(1, _MAX_BEEPS), random_pitch(rng)
    beep_s = rng.uniform(0.1, 0.18)
    starts = [0.0]
    for _ in range(count - 1):
        starts.append(starts[-1] + beep_s + rng.uniform(0.2, 0.38))
    clip_s = rng.uniform(2.8, 3.4)
    lead_s = rng.uniform(0.1, clip_s - 0.1 - starts[-1] - beep_s)
    beep = glide(rng, split, pitch, pitch, beep_s)
    clip = silence(rng, noise_generator(rng, split), clip_s)
    sounds = ((lead_s + start, beep) for start in starts)
    return Drawn(
        part=_sound_part(add_sounds(clip, sounds, rng.uniform(0.1, 0.4))), answer=str(count)
    )


def _draw_pitch(rng: random.Random, split: Split) -> Drawn:
    shape, middle_hz = rng.choice(_SHAPES), random_pitch(rng)
    half_octaves = {"rising": 1, "falling": -1, "steady": 0}[shape] * rng.uniform(0.25, 0.6)
    tone_s, lead_s, rest_s = rng.uniform(0.6, 1.4), rng.uniform(0.1, 0.4), rng.uniform(0.1, 0.4)
    tone = glide(rng, split, middle_hz * 2**-half_octaves, middle_hz * 2**half_octaves, tone_s)
    clip = silence(rng, noise_generator(rng, split), lead_s + tone_s + rest_s)
    return Drawn(
        part=_sound_part(add_sounds(clip, [(lead_s, tone)], rng.uniform(0.1, 0.4))), answer=shape
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Speech:
    """Draws clips of one voice that says words with short rests between them."""

    banks: SpeechBanks

    def draw_digits(self, rng: random.Random, split: Split) -> Drawn:
        digits = [rng.randrange(10) for _ in range(rng.randint(1, _MAX_DIGITS))]
        samples = self._say(rng, split, [_DIGITS[digit] for digit in digits])
        return Drawn(part=_sound_part(samples), answer=" ".join(map(str, digits)))

    def draw_words(self, rng: random.Random, split: Split) -> Drawn:
        words = [rng.choice(_WORDS) for _ in range(rng.randint(1, _MAX_WORDS))]
        return Drawn(part=_sound_part(self._say(rng, split, words)), answer=" ".join(words))

    def _say(self, rng: random.Random, split: Split, words: list[str]) -> np.ndarray:
        """float32 [n] at 24 kHz."""
        bank = self.banks.get(split)
        voice = rng.choice(bank.voices)
        sounds, now_s = [], rng.uniform(0.08, 0.3)
        for word in words:
            clip = bank.clip(voice, word)
            sounds.append((now_s, clip))
            now_s += len(clip) / SAMPLE_RATE + rng.uniform(0.1, 0.3)
        clip = silence(rng, noise_generator(rng, split), now_s)
        return add_sounds(clip, sounds, rng.uniform(0.4, 1.5))


_TIMBRES = (
    "Pitches from 300 to 1,905 Hz. Test: tones whose octave has three to five eighths of its "
    "greatest strength; training: tones with less or more."
)
_VOICES = (
    "Spoken by eSpeak NG with rests of 0.1 to 0.3 s, over noise. Test: the speakers "
    f"{', '.join(SPEAKERS['test'])}, whom training never hears."
)


_TONE_TASKS = (
    MediaTask(
        name="beeps",
        modality="audio",
        definition=(
            "How many beeps (1 to 5) of 0.1 to 0.18 s, 0.2 s or more apart, there are in some "
            "3 s of noise. Baseline: any number. " + _TIMBRES
        ),
        baseline=1 / _MAX_BEEPS,
        questions=(
            "How many beeps are there?",
            "Count the beeps.",
            "How many beeps do you hear?",
        ),
        draw=_draw_beeps,
    ),
    MediaTask(
        name="pitch",
        modality="audio",
        definition=(
            f"Whether a tone of 0.6 to 1.4 s is {', '.join(_SHAPES)}: by half an octave or "
            "more, or not at all. Baseline: any of them. Of its middle: " + _TIMBRES
        ),
        baseline=1 / len(_SHAPES),
        questions=(
            "Is the tone rising, falling or steady?",
            "Does the pitch go up, down or stay? Say rising, falling or steady.",
            "How does the pitch of the tone change?",
        ),
        draw=_draw_pitch,
    ),
)


def sound_tasks(banks: SpeechBanks) -> tuple[MediaTask, ...]:
    """All tasks about sound, with speech from these banks."""
    speech = _Speech(banks=banks)
    return (
        *_TONE_TASKS,
        MediaTask(
            name="spoken_digits",
            modality="audio",
            definition=(
                "Which one to three digits are said, written with spaces. Baseline: any digit, one "
                "of 3 x 10. " + _VOICES
            ),
            baseline=1 / (_MAX_DIGITS * len(_DIGITS)),
            questions=(
                "Which digits are spoken?",
                "Write down the digits.",
                "What number do you hear?",
            ),
            draw=speech.draw_digits,
        ),
        MediaTask(
            name="spoken_words",
            modality="audio",
            definition=(
                f"Which one or two words, of {', '.join(_WORDS)}, are said. Baseline: any word, "
                "one of 2 x 12. " + _VOICES
            ),
            baseline=1 / (_MAX_WORDS * len(_WORDS)),
            questions=("Which words are spoken?", "What is said?", "Write down what you hear."),
            draw=speech.draw_words,
        ),
    )


SOUND_TASKS = sound_tasks(SpeechBanks())
"""Their banks are kept in memory from when speech is first drawn; training's takes some seconds to
make. Whoever has worker processes calls `sound_tasks` with banks that have a folder."""
