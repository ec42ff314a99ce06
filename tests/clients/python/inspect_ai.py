"""Inspect: an evaluation of images, one with a tool and one with structured output, by both of its providers."""

import asyncio
import os
from typing import Any

from inspect_ai import Task, eval
from inspect_ai.dataset import Sample
from inspect_ai.model import ChatMessageUser, ContentImage, ContentText, GenerateConfig, ResponseSchema, get_model
from inspect_ai.scorer import includes, match
from inspect_ai.solver import generate, use_tools
from inspect_ai.tool import tool
from inspect_ai.util import json_schema
from pydantic import BaseModel

from tests.clients.probe import ANSWER, IMAGE_URI, MINI, MODEL, QUESTION, SCRIPTED, WEATHER, WORK, check, equal, true

os.environ |= {"INSPECT_LOG_DIR": str(WORK), "INSPECT_DISPLAY": "none"}


class Shape(BaseModel):
    """A shape."""

    large: bool


@tool
def weather() -> Any:
    """Return the tool."""

    async def execute(city: str) -> str:
        """Return the weather of a city.

        Args:
            city: The city.
        """
        return f"say:It is dry in {city}."

    return execute


def evaluated(task: Task, provider: str, url: str, **options: Any) -> Any:
    """Return the log of an evaluation that has ended well."""
    model = get_model(f"{provider}/{MODEL}", base_url=f"{url}/v1", api_key="none", memoize=False)
    (log,) = eval(task, model=model, **options)
    true(log.status == "success", log.error)
    return log


picture = [ChatMessageUser(content=[ContentImage(image=IMAGE_URI), ContentText(text=QUESTION)])]
pictures = [Sample(input=picture, target=ANSWER, id=number) for number in range(3)]
for provider in ("openai-api/ernie", "vllm"):
    with check(f"{provider}: images"):
        log = evaluated(Task(dataset=pictures, solver=generate(), scorer=match()), provider, MINI)
        equal(log.results.scores[0].metrics["accuracy"].value, 1.0)
    with check(f"{provider}: structured output"):
        task = Task(dataset=[Sample(input="Describe a triangle.")], solver=generate())
        schema = ResponseSchema(name="shape", json_schema=json_schema(Shape))
        log = evaluated(task, provider, MINI, response_schema=schema)
        Shape.model_validate_json(log.samples[0].output.completion)
    with check(f"{provider}: log probabilities, and several choices"):
        model = get_model(f"{provider}/{MODEL}", base_url=f"{MINI}/v1", api_key="none", memoize=False)
        output = asyncio.run(
            model.generate("What is red?", config=GenerateConfig(logprobs=True, top_logprobs=2, num_choices=2))
        )
        true(len(output.choices) == 2)
with check("openai-api/ernie: tools"):
    sample = Sample(input=WEATHER, target="It is dry in Lima.")
    task = Task(dataset=[sample], solver=[use_tools(weather()), generate()], scorer=includes())
    equal(evaluated(task, "openai-api/ernie", SCRIPTED).results.scores[0].metrics["accuracy"].value, 1.0)
