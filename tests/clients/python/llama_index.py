"""LlamaIndex: OpenAILike with images, streams, structured output both ways, tools, an agent and completions."""

import asyncio
from typing import Literal

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

from tests.clients.probe import ANSWER, IMAGE, MINI, MODEL, QUESTION, SCRIPTED, WEATHER, check, equal, true


class Shape(BaseModel):
    """A shape."""

    colour: Literal["red", "green", "blue"]
    large: bool


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"say:It is dry in {city}."


def model(url: str, **options: bool) -> OpenAILike:
    """Return a model of a server."""
    settings = {"is_chat_model": True, "context_window": 4096, "max_retries": 0} | options
    return OpenAILike(model=MODEL, api_base=f"{url}/v1", api_key="none", **settings)


picture = ChatMessage(role="user", blocks=[ImageBlock(path=IMAGE), TextBlock(text=QUESTION)])

with check("images"):
    equal(model(MINI).chat([picture]).message.content, ANSWER)
with check("streaming"):
    equal("".join(piece.delta or "" for piece in model(MINI).stream_chat([picture])), ANSWER)
with check("as_structured_llm by tools"):
    found = model(MINI, is_function_calling_model=True).as_structured_llm(Shape).complete("Describe a triangle.").raw
    true(isinstance(found, Shape), found)
with check("as_structured_llm by response_format"):
    llm = model(MINI, should_use_structured_outputs=True)
    found = llm.as_structured_llm(Shape).complete("Describe a triangle.").raw
    true(isinstance(found, Shape), found)
with check("tools"):
    llm = model(SCRIPTED, is_function_calling_model=True)
    found = str(llm.predict_and_call([FunctionTool.from_defaults(weather)], WEATHER))
    equal(found, "say:It is dry in Lima.")
with check("FunctionAgent"):
    agent = FunctionAgent(tools=[weather], llm=model(SCRIPTED, is_function_calling_model=True))

    async def ask() -> str:
        return str(await agent.run(WEATHER))

    found = asyncio.run(ask())
    true(found.startswith("It is dry in Lima."), found)
with check("completions (is_chat_model=False)"):
    equal(model(SCRIPTED, is_chat_model=False).complete("say:red").text.strip(), ANSWER)
