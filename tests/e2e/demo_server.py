"""The real server over the real engine on the demo model, and speech that training never heard."""

import base64
import random

import numpy as np
from fake_server import ServerThread

from mimo_engine.config.engine import CacheConfig, EngineConfig
from mimo_engine.config.media_settings import MediaLimits
from mimo_engine.demo.sound_tasks import sound_tasks
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.eval.media_uris import wav_uri
from mimo_engine.utils.hub import resolve_model


def demo_server(*, limits=None, **options):
    directory = resolve_model("demo")
    config = EngineConfig(model=str(directory), device="cpu", cache=CacheConfig(kv_cache_gib=0.1))
    build = "mimo_engine.engine.core:build_engine"
    return ServerThread(directory, config, build, media_limits=limits or MediaLimits(), **options)


def spoken_words(number):
    """(samples, rate, the words said) of so many held-out examples."""
    [task] = [task for task in sound_tasks(SpeechBanks()) if task.name == "spoken_words"]
    rng = random.Random("spoken words")
    for example in (task.make(rng, "test") for _ in range(number)):
        [part] = [p for p in example.messages[-1]["content"] if p["type"] == "audio"]
        yield *part["audio"], example.answer["content"]


def wav(samples, rate):
    return base64.b64decode(wav_uri(np.asarray(samples, np.float32), rate).partition(",")[2])
