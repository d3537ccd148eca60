"""An agent of the OpenAI Agents SDK, whose tool runs here and whose model is the demo's."""

import asyncio
import json

import pytest
from agents import (
    Agent,
    FunctionTool,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    RunConfig,
    Runner,
)
from demo_server import (
    WEATHER_ANSWER,
    WEATHER_ARGUMENTS,
    WEATHER_QUESTION,
    WEATHER_RESULT,
    WEATHER_TOOLS,
    demo_text_server,
)
from fake_server import MODEL

RUN = RunConfig(tracing_disabled=True)


@pytest.fixture(scope="module")
def server():
    with demo_text_server() as server:
        yield server


def weather_agent(model, asked):
    async def look(_context, arguments):
        asked.append(json.loads(arguments))
        return WEATHER_RESULT

    tools = [
        FunctionTool(
            name=tool["name"],
            description=tool["description"],
            params_json_schema=tool["parameters"],
            on_invoke_tool=look,
        )
        for tool in WEATHER_TOOLS
    ]
    settings = ModelSettings(temperature=0)
    return Agent(name="weather", model=model, model_settings=settings, tools=tools)


def chat_model(name, client):
    # As the model was trained, a turn that follows a call sees the thought before it.
    return OpenAIChatCompletionsModel(name, client, should_replay_reasoning_content=lambda _: True)


@pytest.mark.parametrize("kind", [OpenAIResponsesModel, chat_model])
@pytest.mark.parametrize("streamed", [False, True])
def test_an_agent_calls_its_tool_and_says_what_it_found(server, kind, streamed):
    asked = []

    async def run():
        async with server.async_openai() as client:
            agent = weather_agent(kind(MODEL, client), asked)
            if not streamed:
                return await Runner.run(agent, WEATHER_QUESTION, run_config=RUN)
            result = Runner.run_streamed(agent, WEATHER_QUESTION, run_config=RUN)
            async for _ in result.stream_events():
                pass
            return result

    result = asyncio.run(run())
    assert asked == [WEATHER_ARGUMENTS]
    assert result.final_output == WEATHER_ANSWER


def test_an_agent_goes_on_by_the_ids_of_its_responses(server):
    asked = []

    async def run():
        async with server.async_openai() as client:
            agent = weather_agent(OpenAIResponsesModel(MODEL, client), asked)
            return await Runner.run(
                agent, WEATHER_QUESTION, run_config=RUN, auto_previous_response_id=True
            )

    result = asyncio.run(run())
    assert asked == [WEATHER_ARGUMENTS]
    assert result.final_output == WEATHER_ANSWER
    assert len(result.raw_responses) == 2
