"""The fields of a request about tools, in OpenAI's form."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

MAX_TOOLS = 128
MAX_CALLS = 128  # of one message
MAX_NAME = 128  # characters

Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME)]


class _ToolPart(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Function(_ToolPart):
    """A function that the model may call. `strict` has no effect."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(_ToolPart):
    """A tool that the model may call."""

    type: Literal["function"]
    function: Function

    def variable(self) -> dict[str, Any]:
        """Return the tool as a chat template takes it."""
        function = self.function.model_dump(exclude_none=True, exclude={"strict"})
        return {"type": "function", "function": function}


class FunctionName(_ToolPart):
    """The name of a function."""

    name: Name


class NamedTool(_ToolPart):
    """The tool that the model has to call."""

    type: Literal["function"]
    function: FunctionName


ToolChoice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(_ToolPart):
    """A function and its arguments, JSON as text; some clients send an object."""

    name: Name
    arguments: str | dict[str, Any] | None = None


class Call(_ToolPart):
    """A call in a message of the assistant, as an answer had it."""

    id: str | None = None
    type: Literal["function"] = "function"
    index: int | None = None
    function: CalledFunction
