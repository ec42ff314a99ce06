"""Haystack: OpenAIChatGenerator with images, streams, structured output and tools, and its Agent."""

from typing import Annotated, Literal

from haystack.components.agents import Agent
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage, ImageContent
from haystack.tools import tool
from haystack.utils import Secret
from pydantic import BaseModel

from tests.clients.probe import ANSWER, IMAGE, MINI, MODEL, QUESTION, SCRIPTED, WEATHER, check, equal, true


class Shape(BaseModel):
    """A shape."""

    colour: Literal["red", "green", "blue"]
    large: bool


@tool
def weather(city: Annotated[str, "the city"]) -> str:
    """Return the weather of a city."""
    return f"say:It is dry in {city}."


def generator(url: str, **options: object) -> OpenAIChatGenerator:
    """Return a generator that asks a server."""
    key = Secret.from_token("none")
    return OpenAIChatGenerator(api_key=key, api_base_url=f"{url}/v1", model=MODEL, max_retries=0, **options)


CALL = [ChatMessage.from_user(WEATHER)]

for detail in ("auto", "low"):
    with check("images" if detail == "auto" else "images with detail=low"):
        picture = ImageContent.from_file_path(IMAGE, detail=detail)
        message = ChatMessage.from_user(content_parts=[picture, QUESTION])
        equal(generator(MINI).run(messages=[message])["replies"][0].text, ANSWER)
with check("streaming"):
    pieces: list[str] = []
    streaming = generator(MINI, streaming_callback=lambda piece: pieces.append(piece.content))
    streaming.run(messages=[message])
    equal("".join(pieces), ANSWER)
with check("structured output"):
    structured = generator(MINI, generation_kwargs={"response_format": Shape})
    reply = structured.run(messages=[ChatMessage.from_user("Describe a triangle.")])["replies"][0]
    Shape.model_validate_json(reply.text)
with check("tools"):
    (call,) = generator(SCRIPTED, tools=[weather]).run(messages=CALL)["replies"][0].tool_calls
    equal((call.tool_name, call.arguments), ("weather", {"city": "Lima"}))
with check("Agent"):
    found = Agent(chat_generator=generator(SCRIPTED), tools=[weather]).run(messages=CALL)["last_message"].text
    true(found.startswith("It is dry in Lima."), found)
