"""The tools of the demo's conversations, as data.

A tool has more than one name, and so has a parameter: which ones hold is only in the conversation's
own list of tools, so that a model has to read it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mimo_engine.demo.slots import Slot
from mimo_engine.demo.words import CITIES, FOODS, NAMES, PRODUCTS

__all__ = ["TOOLS", "OfferedTool", "Parameter", "Tool", "offer"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Parameter:
    names: tuple[str, ...]
    slot: Slot


@dataclass(frozen=True, kw_only=True, slots=True)
class Tool:
    """`texts` are requests with every parameter, by its key in `parameters`, in braces."""

    names: tuple[str, ...]
    description: str
    parameters: Mapping[str, Parameter]
    texts: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OfferedTool:
    """A tool as one conversation has it: the names it goes by, and its definition."""

    name: str
    parameter_names: Mapping[str, str]
    """By key in `Tool.parameters`, in the order of the definition."""
    definition: Mapping[str, Any]


def offer(rng: random.Random, tool: Tool) -> OfferedTool:
    """`tool` with names and an order of parameters drawn."""
    keys = rng.sample(sorted(tool.parameters), len(tool.parameters))
    names = {key: rng.choice(tool.parameters[key].names) for key in keys}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {names[key]: dict(tool.parameters[key].slot.schema) for key in keys},
    }
    if rng.random() < 0.5:
        schema["required"] = list(names.values())
    name = rng.choice(tool.names)
    function = {"name": name, "description": tool.description, "parameters": schema}
    return OfferedTool(
        name=name,
        parameter_names=names,
        definition={"type": "function", "function": function},
    )


def _string(*names: str, values: Sequence[str]) -> Parameter:
    return Parameter(names=names, slot=Slot(schema={"type": "string"}, values=values))


def _one_of(*names: str, values: Sequence[str]) -> Parameter:
    schema = {"type": "string", "enum": list(values)}
    return Parameter(names=names, slot=Slot(schema=schema, values=values))


def _integer(*names: str, values: Sequence[int]) -> Parameter:
    return Parameter(names=names, slot=Slot(schema={"type": "integer"}, values=values))


def _boolean(*names: str, true: str, false: str) -> Parameter:
    slot = Slot(schema={"type": "boolean"}, values=(True, False), spoken={True: true, False: false})
    return Parameter(names=names, slot=slot)


# Halves, and whole numbers as whole numbers.
_AMOUNTS = tuple(n / 2 if n % 2 else n // 2 for n in range(2, 200))
_CHORES = (
    *(f"call {name}" for name in NAMES),
    *(f"buy {food}" for food in FOODS),
    *(f"clean the {product}" for product in PRODUCTS),
)

TOOLS: Mapping[str, Tool] = {
    "weather": Tool(
        names=("get_weather", "weather"),
        description="Current weather",
        parameters={
            "city": _string("city", "location", values=CITIES),
            "unit": _one_of("unit", "units", values=("celsius", "fahrenheit")),
        },
        texts=(
            "What is the weather in {city} in {unit}?",
            "How warm is it in {city} in {unit}?",
            "Tell me the weather in {city}, in {unit}.",
        ),
    ),
    "forecast": Tool(
        names=("get_forecast", "forecast"),
        description="Weather of the next days",
        parameters={
            "city": _string("city", "location", values=CITIES),
            "days": _integer("days", "num_days", values=range(2, 10)),
        },
        texts=(
            "Give me the forecast for {city} for {days} days.",
            "What will the weather be in {city} in the next {days} days?",
        ),
    ),
    "time": Tool(
        names=("get_time", "local_time"),
        description="Time in a city",
        parameters={"city": _string("city", "location", values=CITIES)},
        texts=(
            "What time is it in {city}?",
            "Tell me the time in {city}.",
            "How late is it in {city}?",
        ),
    ),
    "convert": Tool(
        names=("convert_meters", "convert"),
        description="Convert meters",
        parameters={
            "amount": Parameter(
                names=("amount", "meters"),
                slot=Slot(schema={"type": "number"}, values=_AMOUNTS),
            ),
            "unit": _one_of("unit", "to", values=("feet", "yards", "miles")),
        },
        texts=("Convert {amount} meters to {unit}.", "How many {unit} are {amount} meters?"),
    ),
    "music": Tool(
        names=("play_music", "play"),
        description="Play music",
        parameters={
            "genre": _string("genre", "style", values=("jazz", "rock", "pop", "folk", "classical")),
            "loud": _boolean("loud", "is_loud", true="loudly", false="quietly"),
        },
        texts=("Play some {genre} music {loud}.", "I want to hear {genre}, {loud} please."),
    ),
    "reminder": Tool(
        names=("set_reminder", "remind"),
        description="Remind the user",
        parameters={
            "text": _string("text", "task", values=_CHORES),
            "minutes": _integer("minutes", "delay", values=range(2, 100)),
        },
        texts=(
            "Remind me to {text} in {minutes} minutes.",
            "In {minutes} minutes, remind me to {text}.",
        ),
    ),
    "light": Tool(
        names=("set_light", "switch_light"),
        description="Switch a light",
        parameters={
            "room": _string("room", "place", values=("kitchen", "bedroom", "hall", "garage")),
            "on": _boolean("on", "is_on", true="on", false="off"),
        },
        texts=(
            "Turn {on} the light in the {room}.",
            "Please switch the {room} light {on}.",
        ),
    ),
    "alarm": Tool(
        names=("set_alarm", "alarm"),
        description="Set an alarm",
        parameters={
            "hour": _integer("hour", "time", values=range(1, 13)),
            "daily": _boolean("daily", "repeat", true="every day", false="tomorrow"),
        },
        texts=("Wake me at {hour} {daily}.", "Set an alarm for {hour}, {daily}."),
    ),
    "order": Tool(
        names=("order_food", "order"),
        description="Order food",
        parameters={
            "food": _string("food", "item", values=FOODS),
            "count": _integer("count", "number", values=range(2, 10)),
        },
        texts=("Order {food} for {count} people.", "I would like {food} for {count} people."),
    ),
}
