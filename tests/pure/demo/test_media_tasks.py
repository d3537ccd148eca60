"""The tasks with media: pictures and sounds show what the answers say, and the splits differ."""

import json
import math
import random
import shutil
import subprocess
import sys
from collections import Counter
from hashlib import sha256

import media_reading
import numpy as np
import pytest

from mimo_engine.demo.bank import ACCENTS, SPEAKERS, VOCABULARY, Bank
from mimo_engine.demo.drawing import background_hue
from mimo_engine.demo.espeak import speech_bank
from mimo_engine.demo.glyphs import STYLES
from mimo_engine.demo.held_out_speech import CLIPS_FILE, SPEECH_DIR, held_out_bank
from mimo_engine.demo.image_tasks import IMAGE_TASKS, PLACES, WORDS
from mimo_engine.demo.sound_tasks import sound_tasks
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.demo.tones import SAMPLE_RATE, octave_strength
from mimo_engine.demo.video_tasks import FPS, VIDEO_TASKS
from mimo_engine.errors import ConfigError

NAMES = [
    *("colour", "shape", "count", "position", "digits", "word"),
    *("motion", "order", "flashes", "first", "agree"),
    *("beeps", "pitch", "spoken_digits", "spoken_words"),
]
ODD_ANSWERS = [
    *({}, {"content": None}, {"content": 3}, {"content": ["red"]}, {"content": ""}),
    *({"content": "\ud800\x00"}, {"content": "9" * 10_000}, {"tool_calls": [{}]}),
]
WITHOUT_ESPEAK = """
import random, sys

for name in ("torch", "safetensors", "espeakng_loader"):
    sys.modules[name] = None  # importing it raises ImportError

from mimo_engine.demo.image_tasks import IMAGE_TASKS
from mimo_engine.demo.sound_tasks import SOUND_TASKS
from mimo_engine.demo.video_tasks import VIDEO_TASKS

for task in (*IMAGE_TASKS, *VIDEO_TASKS, *SOUND_TASKS):
    task.make(random.Random(0), "test")
    try:
        task.make(random.Random(0), "train")
    except ValueError as error:
        print(task.name, type(error).__name__, error)
"""

FIRST_BANK = """
from hashlib import sha256
from mimo_engine.demo.espeak import speech_bank

print(sha256(speech_bank("test", accents=("en-us",)).samples.tobytes()).hexdigest())
"""

# In a process of its own, since only the first bank is the same to the bit.
SHIPPED = """
import numpy as np
from mimo_engine.demo.espeak import speech_bank
from mimo_engine.demo.held_out_speech import held_out_bank

made, shipped = speech_bank("test"), held_out_bank()
assert np.array_equal(made.ends, shipped.ends)
pairs = ((made.clip(v, w), shipped.clip(v, w)) for v in made.voices for w in made.words)
print(min(np.corrcoef(*pair)[0, 1] for pair in pairs))
"""


@pytest.fixture(scope="session")
def banks(tmp_path_factory):
    """Every speaker, in one accent."""
    folder = tmp_path_factory.mktemp("banks")
    for split in ("train", "test"):
        speech_bank(split, accents=("en-us",)).save(folder / f"speech-{split}.npz")
    return SpeechBanks(folder)


@pytest.fixture(scope="session")
def tasks(banks):
    return {task.name: task for task in (*IMAGE_TASKS, *VIDEO_TASKS, *sound_tasks(banks))}


@pytest.fixture(params=NAMES)
def task(request, tasks):
    return tasks[request.param]


def examples(task, count, split="test", seed=0):
    rng = random.Random(seed)
    return [task.make(rng, split) for _ in range(count)]


def part_of(example):
    (turn,) = example.messages
    (part,) = (part for part in turn["content"] if part["type"] != "text")
    return part


def question(example):
    (turn,) = example.messages
    (part,) = (part for part in turn["content"] if part["type"] == "text")
    return part["text"]


def digest(example):
    """Of all that is seen and heard."""
    part = part_of(example)
    arrays = [value[0] if isinstance(value, tuple) else value for value in part.values()]
    data = b"".join(array.tobytes() for array in arrays if isinstance(array, np.ndarray))
    return sha256(data).hexdigest()


def share_read_right(task, read, count=40):
    """Of examples of both splits, by a reader of the part and the question."""
    drawn = [e for split in ("train", "test") for e in examples(task, count // 2, split)]
    return sum(read(part_of(e), question(e)) == e.target for e in drawn) / len(drawn)


def test_the_names_here_are_all_tasks(tasks):
    assert list(tasks) == NAMES


def test_the_own_answer_is_right_and_those_of_others_and_odd_ones_are_not(task):
    drawn = examples(task, 60)
    for example in drawn:
        assert task.is_right(example, example.answer)
        assert task.is_right(example, {"content": f" {example.target.capitalize()}.\n"})
        assert not task.is_right(example, {"content": f"{example.target} {example.target}"})
        assert not any(task.is_right(example, answer) for answer in ODD_ANSWERS)
        for other in drawn:
            assert task.is_right(example, other.answer) == (example.target == other.target)


def test_a_right_text_beside_a_tool_call_is_not_an_answer(task):
    (example,) = examples(task, 1)
    assert not task.is_right(example, {"content": example.target, "tool_calls": [{"id": "1"}]})


def test_an_example_is_a_function_of_the_generators_state(task):
    once, again = examples(task, 8, seed=3), examples(task, 8, seed=3)
    assert list(map(digest, once)) == list(map(digest, again))
    assert list(map(question, once)) == list(map(question, again))
    assert [e.thinks for e in once] == [e.thinks for e in again]


def test_no_example_of_one_split_is_one_of_the_other_from_the_same_seeds(task):
    train = {digest(example) for example in examples(task, 60, "train")}
    test = {digest(example) for example in examples(task, 60, "test")}
    assert len(train) == len(test) == 60
    assert not train & test


def test_what_the_splits_differ_by_has_nothing_in_common():
    rng = random.Random(0)
    hues = {split: {int(16 * background_hue(rng, split)) for _ in range(999)} for split in STYLES}
    assert hues["test"] == {0, 4, 8, 12}
    assert hues["train"] == set(range(16)) - hues["test"]
    eighths = {
        split: {int(8 * octave_strength(rng, split) / 0.3) for _ in range(999)} for split in STYLES
    }
    assert eighths["test"] == {3, 4}
    assert eighths["train"] == {0, 1, 2, 5, 6, 7}
    assert not set(STYLES["train"]) & set(STYLES["test"])
    assert not set(SPEAKERS["train"]) & set(SPEAKERS["test"])


def test_the_baseline_is_what_the_commonest_answer_gets(task):
    drawn = examples(task, 800)
    commonest = Counter(e.target for e in drawn).most_common(1)[0][1]
    assert commonest / len(drawn) == pytest.approx(task.baseline, abs=0.06)


def test_phrasings_thinking_and_order_of_parts_vary_and_answers_never_reason(task):
    drawn = examples(task, 60, "train")
    assert {e.thinks for e in drawn} == {True, False}
    assert {e.messages[0]["content"][0]["type"] for e in drawn} == {task.modality, "text"}
    assert len({question(e) for e in drawn}) >= len(task.questions)
    assert all(e.answer["content"] == e.target for e in drawn)
    assert not any(e.answer["reasoning_content"] for e in drawn)


def test_media_have_the_types_and_sizes_that_the_processor_takes(task):
    for example in examples(task, 12, "train"):
        part = part_of(example)
        assert part["type"] == task.modality
        if task.modality == "image":
            assert part["image"].dtype == np.uint8
            assert part["image"].shape in {(96, 96, 3), (96, 128, 3)}
        if task.modality == "video":
            frames, fps = part["video"]
            assert (frames.dtype, frames.shape[1:], fps) == (np.uint8, (64, 64, 3), FPS)
            assert len(frames) % 2 == 0
        if "audio" in part:
            samples, rate = part["audio"]
            assert (samples.dtype, samples.ndim, rate) == (np.float32, 1, SAMPLE_RATE)
            assert np.abs(samples).max() <= 1
            if task.modality == "video":
                assert len(samples) / rate == len(frames) / fps
            else:
                assert len(samples) / rate < 4


def test_colours_can_be_read_from_the_pixels(tasks):
    def read(part, _):
        return media_reading.colour(part["image"], media_reading.foreground(part["image"]))

    assert share_read_right(tasks["colour"], read) == 1


def test_shapes_can_be_read_from_the_pixels(tasks):
    def read(part, _):
        return media_reading.shape(media_reading.foreground(part["image"]))

    assert share_read_right(tasks["shape"], read) == 1


def test_counted_shapes_lie_apart_in_the_pixels(tasks):
    def read(part, _):
        return str(len(media_reading.pieces(media_reading.foreground(part["image"]))))

    assert share_read_right(tasks["count"], read) == 1


def test_the_shape_is_where_the_answer_says(tasks):
    def read(part, _):
        centre = media_reading.centre(media_reading.foreground(part["image"]))
        return min(PLACES, key=lambda place: math.dist(centre, PLACES[place]))

    assert share_read_right(tasks["position"], read) == 1


def test_digits_can_be_read_from_the_pixels(tasks):
    others = {"".join(e.target.split()) for e in examples(tasks["digits"], 30, seed=9)}
    for example in (e for split in STYLES for e in examples(tasks["digits"], 8, split)):
        ink = media_reading.foreground(part_of(example)["image"])
        shown = "".join(example.target.split())
        assert media_reading.text(ink, sorted(others | {shown}), range(20, 37)) == shown


def test_words_can_be_read_from_the_pixels(tasks):
    def read(part, _):
        candidates = [word.upper() for word in WORDS]
        ink = media_reading.foreground(part["image"])
        return media_reading.text(ink, candidates, range(14, 31)).lower()

    assert share_read_right(tasks["word"], read, count=20) >= 0.95


def test_the_dot_moves_the_way_that_the_answer_says(tasks):
    def read(part, _):
        first, last = (
            np.array(media_reading.centre(media_reading.foreground(part["video"][0][index])))
            for index in (0, -1)
        )
        dx, dy = last - first
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"

    assert share_read_right(tasks["motion"], read) == 1


def test_the_colours_flash_in_the_order_that_the_answer_says(tasks):
    def read(part, asked):
        seen = []
        for frame in part["video"][0]:
            lit = media_reading.foreground(frame)
            if lit.sum() > 8:
                seen.append(media_reading.colour(frame, lit))
        assert len(set(seen)) == 2
        return seen[-1] if "last" in asked else seen[0]

    assert share_read_right(tasks["order"], read) == 1


def test_flashes_are_pairs_of_frames_with_dark_pairs_between(tasks):
    def read(part, _):
        pairs = media_reading.lit_pairs(part["video"][0])
        assert all(np.diff(pairs) > 1)
        return str(len(pairs))

    assert share_read_right(tasks["flashes"], read) == 1


def test_what_came_first_can_be_seen_and_heard(tasks):
    def read(part, _):
        (pair,) = media_reading.lit_pairs(part["video"][0])
        ((start, end),) = media_reading.loud_spans(*part["audio"])
        assert int(start) == int(end)
        return "flash" if pair < int(start) else "beep"

    assert share_read_right(tasks["first"], read) == 1


def test_whether_flashes_and_beeps_agree_can_be_seen_and_heard(tasks):
    def read(part, _):
        flashes = media_reading.lit_pairs(part["video"][0])
        beeps = media_reading.loud_spans(*part["audio"])
        return "yes" if len(flashes) == len(beeps) else "no"

    assert share_read_right(tasks["agree"], read) == 1


@pytest.mark.parametrize(
    ("name", "sense", "share"),
    [("first", 0, 2 / 3), ("first", 1, 2 / 3), ("agree", 0, 1 / 2), ("agree", 1, 1 / 2)],
)
def test_one_sense_alone_gets_what_the_definition_says(tasks, name, sense, share):
    answers = {}
    for example in examples(tasks[name], 300):
        part = part_of(example)
        pairs = media_reading.lit_pairs(part["video"][0])
        seconds = [int(start) for start, _ in media_reading.loud_spans(*part["audio"])]
        seen = (pairs, seconds)[sense]
        key = len(seen) if name == "agree" else tuple(seen)
        answers.setdefault(key, Counter())[example.target] += 1
    best = sum(counts.most_common(1)[0][1] for counts in answers.values()) / 300
    assert best == pytest.approx(share, abs=0.08)


def test_beeps_can_be_counted_in_the_samples(tasks):
    def read(part, _):
        return str(len(media_reading.loud_spans(*part["audio"])))

    assert share_read_right(tasks["beeps"], read) == 1


def test_the_tone_goes_the_way_that_the_answer_says(tasks):
    def read(part, _):
        samples, rate = part["audio"]
        ((start, end),) = media_reading.loud_spans(samples, rate)
        tone = samples[int(start * rate) : int(end * rate)]
        early, late = (
            media_reading.loudest_hz(piece, rate)
            for piece in (tone[: rate // 10], tone[-rate // 10 :])
        )
        octaves = np.log2(late / early)
        return "steady" if abs(octaves) < 0.1 else "rising" if octaves > 0 else "falling"

    assert share_read_right(tasks["pitch"], read) == 1


def test_speech_says_the_digits_and_words_of_the_answer_in_one_voice(tasks, banks):
    bank = banks.get("test")
    for name in ("spoken_digits", "spoken_words"):
        for example in examples(tasks[name], 6):
            samples, _ = part_of(example)["audio"]
            heard = [
                media_reading.said(samples, {word: bank.clip(voice, word) for word in VOCABULARY})
                for voice in bank.voices
            ]
            words = example.target.split()
            expected = [VOCABULARY[int(w)] if w.isdigit() else w for w in words]
            assert max(heard, key=len) == expected
            assert sum(map(bool, heard)) == 1


def test_a_bank_has_every_word_in_every_voice_at_one_level(banks):
    for split in ("train", "test"):
        bank = banks.get(split)
        assert len(bank.voices) == len(set(bank.voices)) == len(SPEAKERS[split])
        for voice in bank.voices:
            for word in VOCABULARY:
                clip = bank.clip(voice, word)
                assert 0.15 < len(clip) / SAMPLE_RATE < 1
                assert np.sqrt(np.mean(np.square(clip))) == pytest.approx(0.1, abs=0.01)


def test_no_two_words_or_voices_sound_the_same(banks):
    bank = banks.get("test")
    clips = {bank.clip(voice, word).tobytes() for voice in bank.voices for word in VOCABULARY}
    assert len(clips) == len(bank.voices) * len(VOCABULARY)


def test_the_first_bank_of_a_process_is_the_same_each_time():
    once, again = (
        subprocess.run(
            [sys.executable, "-W", "error", "-c", FIRST_BANK],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for _ in range(2)
    )
    assert len(once.strip()) == 64
    assert once == again


def test_a_saved_bank_is_the_same_bank_and_one_of_other_words_is_refused(banks, tmp_path):
    bank, path = banks.get("test"), tmp_path / "bank.npz"
    bank.save(path)
    loaded = Bank.load(path, "test")
    assert (loaded.words, loaded.voices) == (bank.words, bank.voices)
    assert np.array_equal(loaded.samples, bank.samples)
    assert np.array_equal(loaded.ends, bank.ends)
    Bank(words=("hello",), voices=("en",), samples=bank.samples, ends=bank.ends).save(path)
    with pytest.raises(ConfigError, match="delete it"):
        Bank.load(path, "test")
    bank.save(path)
    with pytest.raises(ConfigError, match="another split: delete it"):
        Bank.load(path, "train")


def test_banks_are_made_once_and_kept_in_their_folder(tmp_path):
    made = SpeechBanks(tmp_path / "new").get("test")
    assert made.voices == tuple(f"{a}+{s}" for a in ACCENTS for s in SPEAKERS["test"])
    found = SpeechBanks(tmp_path / "new").get("test")
    assert np.array_equal(made.samples, found.samples)


def test_what_ships_is_espeaks_speech_through_opus():
    shipped = held_out_bank()
    assert shipped.voices == tuple(f"{a}+{s}" for a in ACCENTS for s in SPEAKERS["test"])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SHIPPED],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert float(done.stdout) > 0.9


def test_shipped_speech_that_is_not_what_its_list_says_is_refused(tmp_path):
    folder = tmp_path / "speech"
    shutil.copytree(SPEECH_DIR, folder)
    listed = json.loads((folder / CLIPS_FILE).read_text())
    first, second, *_ = listed["ends"]
    (folder / f"{first}.opus").write_bytes((folder / f"{second}.opus").read_bytes())
    with pytest.raises(ConfigError, match=r"samples long: install the package anew"):
        held_out_bank(folder)
    (folder / CLIPS_FILE).write_text(json.dumps({**listed, "words": ["hello"]}))
    with pytest.raises(ConfigError, match="other words"):
        held_out_bank(folder)


def test_without_espeak_and_torch_all_but_the_speech_of_training_is_drawn():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_ESPEAK],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["spoken_digits", "ConfigError"],
        ["spoken_words", "ConfigError"],
    ]
    assert all("pip install 'mimo-engine[demo]'" in line for line in lines)
