"""LangChain: chat, images, streams, the three methods of structured output, tools and an agent, embeddings' absence."""

from typing import Literal

from langchain.agents import create_agent
from langchain_core.messages import HumanMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

from tests.clients.probe import (
    ANSWER,
    IMAGE_BASE64,
    IMAGE_URI,
    MINI,
    MODEL,
    QUESTION,
    SCRIPTED,
    WEATHER,
    called,
    check,
    equal,
    true,
)


class Shape(BaseModel):
    """A shape."""

    colour: Literal["red", "green", "blue"]
    large: bool


def weather(city: str) -> str:
    """Return the weather of a city."""
    return f"say:It is dry in {city}."


model = ChatOpenAI(model=MODEL, base_url=f"{MINI}/v1", max_retries=0)
scripted = ChatOpenAI(model=MODEL, base_url=f"{SCRIPTED}/v1", max_retries=0, max_completion_tokens=512)
older_part = {"type": "image_url", "image_url": {"url": IMAGE_URI}}
newer_part = {"type": "image", "base64": IMAGE_BASE64, "mime_type": "image/png"}
text = {"type": "text", "text": QUESTION}

with check("images"):
    for part in (older_part, newer_part):
        equal(model.invoke([HumanMessage([part, text])]).content, ANSWER)
with check("batches"):
    answers = model.batch([[HumanMessage([older_part, text])]] * 3)
    equal([answer.content for answer in answers], [ANSWER] * 3)
with check("streaming"):
    pieces = list(model.stream([HumanMessage([older_part, text])], stream_usage=True))
    equal("".join(str(piece.content) for piece in pieces), ANSWER)
    true(any(piece.usage_metadata for piece in pieces))
for method in ("json_schema", "function_calling", "json_mode"):
    with check(f"with_structured_output ({method})"):
        asked = "Describe a triangle." if method != "json_mode" else 'say:{"colour": "red", "large": true}'
        answering = scripted if method == "json_mode" else model
        found = answering.with_structured_output(Shape, method=method).invoke(asked)
        true(isinstance(found, Shape), found)
with check("bind_tools"):
    (found,) = scripted.bind_tools([weather]).invoke(WEATHER).tool_calls
    equal((found["name"], found["args"]), ("weather", {"city": "Lima"}))
    streamed = None
    for piece in scripted.bind_tools([weather]).stream(WEATHER):
        streamed = piece if streamed is None else streamed + piece
    true(streamed and streamed.tool_calls[0]["args"] == {"city": "Lima"}, streamed)
with check("bind_tools with a required tool"):
    (found,) = model.bind_tools([Shape], tool_choice="Shape", strict=True).invoke("Describe a triangle.").tool_calls
    Shape.model_validate(found["args"])
with check("create_agent"):
    messages = create_agent(scripted, [weather]).invoke({"messages": [{"role": "user", "content": WEATHER}]})[
        "messages"
    ]
    true(messages[-1].content.startswith("It is dry in Lima."), messages[-1].content)
with check("create_agent with response_format"):
    agent = create_agent(scripted, [weather], response_format=Shape)
    given = called("Shape", '{"colour": "red", "large": true}')
    equal(
        agent.invoke({"messages": [{"role": "user", "content": f"say:{given}"}]})["structured_response"].colour, "red"
    )
with check("use_responses_api"):
    responses = ChatOpenAI(model=MODEL, base_url=f"{MINI}/v1", use_responses_api=True, max_retries=0)
    equal(responses.invoke([HumanMessage([older_part, text])]).text, ANSWER)
    equal("".join(piece.text for piece in responses.stream([HumanMessage([older_part, text])])), ANSWER)
    true(isinstance(responses.with_structured_output(Shape).invoke("Describe a triangle."), Shape))
with check("reasoning_effort"):
    thinking = scripted.bind(reasoning_effort="low")
    equal(thinking.invoke("say:It has corners.</think>red").content, "red")
with check("OpenAI (completions)"):
    equal(OpenAI(model=MODEL, base_url=f"{SCRIPTED}/v1", max_retries=0).invoke("say:red").strip(), "red")
