"""pydantic-ai: an image, a stream, the three kinds of output, tools and thoughts."""

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.messages import ThinkingPart
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

from tests.clients.probe import ANSWER, IMAGE, MINI, MODEL, QUESTION, SCRIPTED, THOUGHTS, WEATHER, check, equal, true


class Shape(BaseModel):
    """A shape."""

    colour: Literal["red", "green", "blue"]
    large: bool


mini = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{MINI}/v1", api_key="none"))
scripted = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=f"{SCRIPTED}/v1", api_key="none"))
PICTURE = [BinaryContent(IMAGE.read_bytes(), media_type="image/png"), QUESTION]


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"say:It is dry in {city}."


with check("images"):
    equal(Agent(mini).run_sync(PICTURE).output, ANSWER)
with check("streaming"):
    result = Agent(mini).run_stream_sync(PICTURE)
    equal("".join(result.stream_text(delta=True)), ANSWER)
    true(result.usage.input_tokens)
for kind in (ToolOutput, NativeOutput):
    with check(kind.__name__):
        found = Agent(mini, output_type=kind(Shape), retries=0).run_sync("Describe a triangle.").output
        true(isinstance(found, Shape), found)
with check("PromptedOutput"):
    agent = Agent(scripted, output_type=PromptedOutput(Shape), retries=0)
    equal(agent.run_sync('say:{"colour": "red", "large": true}').output, Shape(colour="red", large=True))
with check("tools"):
    found = Agent(scripted, tools=[weather]).run_sync(WEATHER).output
    true(found.startswith("It is dry in Lima."), found)
with check("streamed tools"):
    result = Agent(scripted, tools=[weather]).run_stream_sync(WEATHER)
    found = "".join(result.stream_text(delta=True))
    true(found.startswith("It is dry in Lima."), found)
with check("reasoning"):
    result = Agent(scripted).run_sync(THOUGHTS, model_settings={"openai_reasoning_effort": "low"})
    equal(result.output, ANSWER)
    thoughts = [part.content for part in result.new_messages()[-1].parts if isinstance(part, ThinkingPart)]
    equal(thoughts, ["It has three corners."])
    after = Agent(scripted).run_sync("say:blue", message_history=result.all_messages())
    equal(after.output, "blue")
with check("responses"):
    model = OpenAIResponsesModel(MODEL, provider=OpenAIProvider(base_url=f"{SCRIPTED}/v1", api_key="none"))
    found = Agent(model, tools=[weather]).run_sync(WEATHER).output
    true(found.startswith("It is dry in Lima."), found)
