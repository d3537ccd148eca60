"""The real server over the real engine on the demo model, speech that training never heard, and a
conversation with tools that is like those of training."""

import base64
import json
import random

import numpy as np
from fake_server import ServerThread

from mimo_engine.config.engine import CacheConfig, EngineConfig, SpeculativeConfig
from mimo_engine.config.media_settings import MediaFacts
from mimo_engine.demo.sound_tasks import sound_tasks
from mimo_engine.demo.speech import SpeechBanks
from mimo_engine.eval.media_uris import wav_uri
from mimo_engine.utils.hub import resolve_model


def _tool(name, description, **properties):
    return {
        "name": name,
        "description": description,
        "parameters": {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        },
    }


# A conversation that is like those of the model's training.
WEATHER_TOOLS = [
    _tool(
        "get_weather",
        "Current weather",
        city={"type": "string"},
        unit={"type": "string", "enum": ["celsius", "fahrenheit"]},
    ),
    _tool(
        "forecast",
        "Weather of the next days",
        location={"type": "string"},
        days={"type": "integer"},
    ),
]
WEATHER_QUESTION = "How warm is it in Rome in celsius?"
WEATHER_ARGUMENTS = {"city": "Rome", "unit": "celsius"}
WEATHER_RESULT = json.dumps({"degrees": 23, "wind": 61})
WEATHER_ANSWER = "It is 23 degrees in Rome."


def demo_text_server():
    """Text alone, without drafts: it is up sooner."""
    return demo_server(
        facts=MediaFacts(text_only=True), speculative=SpeculativeConfig(speculative="off")
    )


def demo_server(*, facts=None, speculative=None, **settings):
    directory = resolve_model("demo")
    config = EngineConfig(
        model=str(directory),
        device="cpu",
        cache=CacheConfig(kv_cache_gib=0.1),
        media=facts or MediaFacts(),
        speculative=speculative or SpeculativeConfig(),
    )
    return ServerThread(directory, config, "mimo_engine.engine.core:build_engine", **settings)


def spoken_words(number):
    """(samples, rate, the words said) of so many held-out examples."""
    [task] = [task for task in sound_tasks(SpeechBanks()) if task.name == "spoken_words"]
    rng = random.Random("spoken words")
    for example in (task.make(rng, "test") for _ in range(number)):
        [part] = [p for p in example.messages[-1]["content"] if p["type"] == "audio"]
        yield *part["audio"], example.answer["content"]


def wav(samples, rate):
    return base64.b64decode(wav_uri(np.asarray(samples, np.float32), rate).partition(",")[2])
