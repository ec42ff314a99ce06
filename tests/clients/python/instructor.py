"""instructor: each of its modes for OpenAI's interface, an image, a list of objects, and a stream of partial ones."""

from typing import Literal

import instructor
import openai
from pydantic import BaseModel

from tests.clients.probe import IMAGE, MINI, MODEL, SCRIPTED, check, true


class Shape(BaseModel):
    """A shape."""

    colour: Literal["red", "green", "blue"]
    large: bool


def asking(mode: instructor.Mode, url: str) -> instructor.Instructor:
    """Return a client in a mode."""
    return instructor.from_openai(openai.OpenAI(base_url=f"{url}/v1", max_retries=0), mode=mode)


ASKED = [{"role": "user", "content": "Describe a triangle."}]
SAYS = [{"role": "user", "content": 'say:{"colour": "red", "large": true}'}]
FENCED = [{"role": "user", "content": 'say:```json\n{"colour": "red", "large": true}\n```'}]

for mode, url, messages in (
    (instructor.Mode.TOOLS, MINI, ASKED),
    (instructor.Mode.TOOLS_STRICT, MINI, ASKED),
    (instructor.Mode.JSON_SCHEMA, MINI, ASKED),
    (instructor.Mode.JSON, SCRIPTED, SAYS),
    (instructor.Mode.MD_JSON, SCRIPTED, FENCED),
    (instructor.Mode.RESPONSES_TOOLS, MINI, ASKED),
):
    with check(mode.name):
        found = asking(mode, url).create(model=MODEL, response_model=Shape, messages=messages, max_retries=0)
        true(isinstance(found, Shape), found)
with check("images"):
    content = [instructor.Image.from_path(str(IMAGE)), "Describe the triangle."]
    found = asking(instructor.Mode.JSON_SCHEMA, MINI).create(
        model=MODEL, response_model=Shape, messages=[{"role": "user", "content": content}], max_retries=0
    )
    true(isinstance(found, Shape), found)
with check("create_partial"):
    found = list(
        asking(instructor.Mode.TOOLS, MINI).create_partial(
            model=MODEL, response_model=Shape, messages=ASKED, max_retries=0
        )
    )
    Shape.model_validate(found[-1].model_dump())
