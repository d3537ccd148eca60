"""Random conversations of text, images, sound and video, as `LLM.chat` takes them."""

import random

import numpy as np

WORDS = "what is the colour of this and how many were there before it said so".split()  # noqa: SIM905


def picture(rng):
    width, height = rng.choice([(96, 96), (160, 64), (64, 160), (128, 96)])
    seed = rng.randrange(5)
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return {"type": "image", "image": noise.astype(np.uint8)}


def sound(rng):
    seconds, seed = rng.choice([0.1, 0.5, 1.7]), rng.randrange(4)
    noise = np.random.default_rng(seed).uniform(-0.5, 0.5, round(seconds * 24_000))
    return {"type": "audio", "audio": (noise.astype(np.float32), 24_000)}


def video(rng, *, with_sound):
    count, seed = rng.choice([2, 3, 6]), rng.randrange(4)
    frames = np.random.default_rng(seed).integers(0, 256, (count, 64, 96, 3)).astype(np.uint8)
    part = {"type": "video", "video": (frames, rng.choice([1.0, 2.0]))}
    return part | {"audio": sound(rng)["audio"]} if with_sound else part


def text(rng):
    words = (rng.choice(WORDS) for _ in range(rng.randrange(1, 12)))
    return {"type": "text", "text": " ".join(words)}


def part(rng):
    kind = rng.random()
    if kind < 0.4:
        return text(rng)
    if kind < 0.65:
        return picture(rng)
    if kind < 0.8:
        return sound(rng)
    return video(rng, with_sound=kind > 0.9)


def conversation(seed):
    """One to three turns. Some begin as others do, so that prefixes are shared."""
    rng = random.Random(seed % 7 if seed % 3 else seed)
    messages = [{"role": "user", "content": [part(rng) for _ in range(rng.randrange(1, 4))]}]
    rng = random.Random(seed)
    for _ in range(rng.randrange(3)):
        messages.append({"role": "assistant", "content": text(rng)["text"]})
        messages.append(
            {"role": "user", "content": [part(rng) for _ in range(rng.randrange(1, 3))]}
        )
    return messages
