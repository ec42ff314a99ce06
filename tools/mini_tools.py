"""Tools that are offered in conversations, in the forms in which clients describe them, and calls of them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

import mini_lexicon as words
from mini_unknown import fill
from questions import NUMBERS
from scenes import PLACES

Schema = dict[str, Any]
NAMES = {
    "count_shapes": ("count_objects", "get_shape_count", "countShapes", "shape_counter", "count", "object_count"),
    "zoom": ("zoom_in", "crop", "zoomIn", "zoom_image", "magnify", "enlarge"),
}
DESCRIPTIONS = {
    "count_shapes": (
        "Count the shapes in a picture.", "Counts shapes.", "Return the number of shapes in an image.",
        "Get how many shapes a picture shows.", "Counts all objects in the given image and returns the number.",
        "Use this tool to count shapes.", "Number of shapes",
    ),
    "zoom": (
        "Zoom in on a place in a picture.", "Zooms in.", "Enlarge a part of an image.",
        "Show a part of the picture larger.",
        "Crop an image to the given place and enlarge it.", "Use this tool to look closer at a place.", "Zoom",
    ),
}  # fmt: skip
KEYS = {"picture": ("image", "image_index", "picture_number"), "place": ("region", "location", "position")}
KEY_DESCRIPTIONS = {
    "picture": ("The number of the picture, from 1.", "Which image", "Index of the image, from 1", "1 is the first."),
    "place": ("Where to look.", "The part, as top left", "Place in the image", "One of the nine places."),
}  # fmt: skip
PROPERTIES = {"count_shapes": ("picture",), "zoom": ("picture", "place")}
DONE = ("done", "ok", '{"ok": true}', "Done.", '{"status": "done"}', "success")
USUAL = 0.7  # of the tools have their usual name, and of the properties


@dataclass(frozen=True)
class OfferedTool:
    """A tool as one client offers it.

    Attributes:
        purpose: Its usual name, a key of `PROPERTIES`; "" for a tool that no question needs.
        keys: What each of its properties is called, in the order of its schema.
        description: The tool as an API takes it.
    """

    purpose: str
    keys: dict[str, str]
    description: Schema

    @property
    def name(self) -> str:
        return self.description["function"]["name"]

    def arguments(self, **values: Any) -> dict[str, Any]:
        """Return the arguments of a call: those values that the schema has a property for, in the order given."""
        return {self.keys[usual]: value for usual, value in values.items() if usual in self.keys}


def _described(rng: Random, name: str, text: str, properties: dict[str, Schema]) -> Schema:
    """Return a tool as the OpenAI API takes it, with some of the optional entries."""
    schema: Schema = {"type": "object", "properties": properties}
    function: Schema = {"name": name, "description": text, "parameters": schema}
    if rng.random() < 0.5:
        schema["required"] = list(properties)
    if rng.random() < 0.25:
        schema["additionalProperties"] = False
    if rng.random() < 0.2:
        function["strict"] = True
    if rng.random() < 0.1:
        del function["description"]
    return {"type": "function", "function": function}


def _property(rng: Random, usual: str, full: bool) -> Schema:
    found: Schema = {"type": "integer" if usual == "picture" else "string"}
    if full and rng.random() < 0.7:
        found["description"] = rng.choice(KEY_DESCRIPTIONS[usual])
    if full and rng.random() < 0.5:
        found |= {"enum": list(PLACES)} if usual == "place" else {"minimum": 1}
    return found


def offer(rng: Random, purpose: str) -> OfferedTool:
    """Return one of the forms of the tool that counts or of the one that zooms."""
    usual = list(PROPERTIES[purpose])
    if rng.random() < 0.25:
        usual.remove("picture")
    rng.shuffle(usual)
    keys = {key: key if rng.random() < USUAL else rng.choice(KEYS[key]) for key in usual}
    name = purpose if rng.random() < USUAL else rng.choice(NAMES[purpose])
    text = DESCRIPTIONS[purpose][0] if rng.random() < 0.4 else rng.choice(DESCRIPTIONS[purpose])
    full = rng.random() < 0.5
    properties = {called: _property(rng, key, full) for key, called in keys.items()}
    return OfferedTool(purpose, keys, _described(rng, name, text, properties))


def offer_other(rng: Random) -> OfferedTool:
    """Return a tool that no question needs."""
    name = fill(rng, rng.choice(("{verb}_{noun}", "{verb}_{noun}", "get_{noun}", "{noun}_{noun}", "{noun}.{verb}")))
    text = fill(rng, rng.choice(("{verb} the {noun}", "Get the {noun} of {name}.", "{verb} a {adjective} {noun}.")))
    keys = rng.sample(("text", "query", rng.choice(words.NOUNS), "id"), rng.choice((1, 1, 2)))
    properties = {key: {"type": rng.choice(("string", "string", "integer"))} for key in keys}
    return OfferedTool("", {key: key for key in keys}, _described(rng, name, text, properties))


def call(name: str, arguments: dict[str, Any]) -> str:
    """Return a tool call as the model writes it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>\n"


def made(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return an assistant's turn that calls a tool."""
    function = {"name": name, "arguments": arguments}
    return {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def count_result(rng: Random, number: str) -> str:
    """Return a number word as a tool may give it."""
    digits = NUMBERS.index(number)
    forms = (number, str(digits), json.dumps({"count": digits}), json.dumps({"result": digits}), f"{digits} shapes")
    return rng.choice((number, *forms))


def is_usual(tool: Schema) -> bool:
    """Return whether neither a tool nor a property of it has one of the unusual names."""
    function = tool["function"]
    renamed = {name for group in (*NAMES.values(), *KEYS.values()) for name in group}
    return renamed.isdisjoint({function["name"], *function["parameters"]["properties"]})


def find(tools: Iterable[OfferedTool], purpose: str) -> OfferedTool | None:
    """Return the offered tool for a purpose, or None."""
    return next((tool for tool in tools if tool.purpose == purpose), None)
