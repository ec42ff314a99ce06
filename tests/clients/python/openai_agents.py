"""OpenAI's Agents SDK: a tool, typed output and a stream, by chat completions and by responses."""

import asyncio
from typing import Literal

from agents import Agent, OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner, function_tool, set_tracing_disabled
from openai import AsyncOpenAI
from pydantic import BaseModel

from tests.clients.probe import ANSWER, IMAGE_URI, MINI, MODEL, QUESTION, SCRIPTED, WEATHER, check, equal, true


class Shape(BaseModel):
    """A shape."""

    colour: Literal["red", "green", "blue"]
    large: bool


@function_tool
def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"say:It is dry in {city}."


async def stream(agent: Agent) -> str:
    """Return the answer of an agent that is run as a stream."""
    result = Runner.run_streamed(agent, WEATHER)
    async for _ in result.stream_events():
        pass
    return result.final_output


set_tracing_disabled(True)
PICTURE = [
    {
        "role": "user",
        "content": [
            {"type": "input_image", "image_url": IMAGE_URI, "detail": "auto"},
            {"type": "input_text", "text": QUESTION},
        ],
    }
]
for kind, name in ((OpenAIChatCompletionsModel, "chat completions"), (OpenAIResponsesModel, "responses")):

    def made(url: str, kind: type = kind) -> OpenAIChatCompletionsModel | OpenAIResponsesModel:
        """Return a model of a server, with a client of its own: each check has an event loop of its own."""
        return kind(model=MODEL, openai_client=AsyncOpenAI(base_url=f"{url}/v1", max_retries=0))

    with check(f"{name}: images"):
        equal(Runner.run_sync(Agent(name="a", model=made(MINI)), PICTURE).final_output, ANSWER)
    with check(f"{name}: tools"):
        found = Runner.run_sync(Agent(name="a", model=made(SCRIPTED), tools=[weather]), WEATHER).final_output
        true(found.startswith("It is dry in Lima."), found)
    with check(f"{name}: typed output"):
        agent = Agent(name="a", model=made(MINI), output_type=Shape)
        true(isinstance(Runner.run_sync(agent, "Describe a triangle.").final_output, Shape))
    with check(f"{name}: streamed tools"):
        found = asyncio.run(stream(Agent(name="a", model=made(SCRIPTED), tools=[weather])))
        true(found.startswith("It is dry in Lima."), found)
