"""The demo model, text alone and without drafts, behind the real server: for tests of clients."""

import json

from fake_server import ServerThread

from mimo_engine.config.engine import CacheConfig, EngineConfig, SpeculativeConfig
from mimo_engine.config.media_settings import MediaFacts
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


def demo_server(**options):
    directory = resolve_model("demo")
    config = EngineConfig(
        model=str(directory),
        device="cpu",
        cache=CacheConfig(kv_cache_gib=0.05),
        media=MediaFacts(text_only=True),
        speculative=SpeculativeConfig(speculative="off"),
    )
    return ServerThread(directory, config, "mimo_engine.engine.core:build_engine", **options)
