"""The fields of a request that ask for a form of the answer, as OpenAI and vLLM have them."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ernie_export.runtime.structured_outputs import StructuredOutputs

SCHEMA_FIELD = "response_format.json_schema.schema"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextFormat(_Part):
    """Free text."""

    type: Literal["text"]

    def form(self) -> StructuredOutputs | None:
        """Return None: text has any form."""
        return None

    def answer_schema(self) -> None:
        """Return None: text has no schema."""
        return None


class JsonObjectFormat(_Part):
    """Any JSON object."""

    type: Literal["json_object"]

    def form(self) -> StructuredOutputs | None:
        """Return the form of the answer."""
        return StructuredOutputs(json_object=True, name="response_format")

    def answer_schema(self) -> dict[str, Any] | bool | None:
        """Return the schema of the answer."""
        return {"type": "object"}


class JsonSchema(_Part):
    """A JSON schema. It is enforced whether `strict` or not; name and description are for the client."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    content: dict[str, Any] | bool = Field(alias="schema")


class JsonSchemaFormat(_Part):
    """JSON that matches a schema."""

    type: Literal["json_schema"]
    json_schema: JsonSchema

    def form(self) -> StructuredOutputs | None:
        """Return the form of the answer. Raises InvalidValue for a schema that is too large."""
        return StructuredOutputs.from_schema(self.json_schema.content, SCHEMA_FIELD)

    def answer_schema(self) -> dict[str, Any] | bool | None:
        """Return the schema of the answer."""
        return self.json_schema.content


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]


class StructuredOutputsField(_Part):
    """vLLM's `structured_outputs`: one of the first five, and options of JSON."""

    schema_: dict[str, Any] | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None

    def form(self) -> StructuredOutputs | None:
        """Return the form of the answer. Raises InvalidValue where there is none, or more than one."""
        return StructuredOutputs.from_value(self.model_dump(by_alias=True))
