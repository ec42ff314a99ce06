"""The form that an answer must have, as a request asks for it. It takes no library: `constraints` compiles it."""

import json as json_format
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line

# Compiling takes time and memory in proportion.
MAX_BYTES = 128 * 1024
MAX_DEPTH = 48  # of a schema, objects within objects; the library's own JSON reader ends at 128 brackets
MAX_GRAMMAR_BYTES = 32 * 1024  # of a grammar or regular expression: GBNF is read in Python, 10 ms a kilobyte
MAX_CHOICES = 4096
# Whitespace between parts of JSON: a space, or a line's end and an indent. Any run without end is what a model that has
# lost its way would write.
WHITESPACE = r"\x20|\r?\n[\x20\t]{0,32}"
_FORMS = ("json", "regex", "choice", "grammar", "json_object")


@dataclass(frozen=True)
class StructuredOutputs:
    """The form of an answer, with the fields of vLLM's `structured_outputs`; exactly one of the first five is set.

    Construction raises InvalidValue for a field that is wrong.

    Attributes:
        json: A JSON schema that the answer must match, as JSON text; a dict or a pydantic model is made one.
        regex: A regular expression that the whole answer must match, in the syntax of Rust's crate `regex`.
        choice: The answers to choose from.
        grammar: A context-free grammar in llguidance's form of Lark, or in GBNF.
        json_object: True for any JSON object.
        disable_any_whitespace: Whether JSON is written without whitespace between its parts.
        disable_additional_properties: Whether objects of the schema that do not say so take no further properties.
        whitespace_pattern: A regular expression of the whitespace between the parts of JSON; None for a short run of
            any.
        name: How the request names this, for errors.
    """

    json: str | None = None
    regex: str | None = None
    choice: tuple[str, ...] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None
    name: str = field(default="structured_outputs", compare=False)

    def __post_init__(self) -> None:
        given = [form for form in _FORMS if getattr(self, form) is not None]
        if len(given) != 1:
            raise InvalidValue(self.name, f"one of {', '.join(_FORMS)}", " and ".join(given) or "none")
        if self.json is not None:
            object.__setattr__(self, "json", _schema_text(self.json, self.path("json")))
        if self.json_object is not None and self.json_object is not True:
            raise InvalidValue(self.path("json_object"), "true", one_line(self.json_object))
        for name in ("regex", "grammar", "whitespace_pattern"):
            if getattr(self, name) is not None:
                _check_text(getattr(self, name), self.path(name), MAX_GRAMMAR_BYTES)
        for name in ("disable_any_whitespace", "disable_additional_properties"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidValue(self.path(name), "true or false", one_line(getattr(self, name)))
        if self.choice is not None:
            self._check_choice()

    @classmethod
    def from_schema(cls, schema: Any, name: str) -> "StructuredOutputs":
        """Return the form of a JSON schema: a dict, JSON text, or a pydantic model class. `name` stands in errors."""
        return cls(json=schema, name=name)

    @classmethod
    def from_value(cls, value: Any) -> "StructuredOutputs | None":
        """Return a form as it is, or from a mapping of its fields. Raises InvalidValue for an unknown field."""
        if value is None or isinstance(value, cls):
            return value
        if not isinstance(value, Mapping):
            raise InvalidValue("structured_outputs", f"an object with one of {', '.join(_FORMS)}", one_line(value))
        known = [field.name for field in fields(cls) if field.name != "name"]
        for key in value:
            if key not in known:
                raise InvalidValue(f"structured_outputs.{one_line(key)}", f"one of {', '.join(known)}", "another field")
        return cls(**value)

    def path(self, form: str) -> str:
        """Return how the request names one of the fields: a form that stands alone has the name of the whole."""
        return f"{self.name}.{form}" if self.name == "structured_outputs" else self.name

    def _check_choice(self) -> None:
        value = self.choice
        path = self.path("choice")
        if (
            not isinstance(value, list | tuple)
            or not value
            or not all(isinstance(text, str) and text for text in value)
        ):
            raise InvalidValue(path, "a list of texts that are not empty", one_line(value))
        if len(value) > MAX_CHOICES:
            raise InvalidValue(path, f"at most {MAX_CHOICES} texts", len(value))
        _check_text("".join(value), path)
        object.__setattr__(self, "choice", tuple(value))


def _check_text(value: object, path: str, max_bytes: int = MAX_BYTES) -> None:
    if not isinstance(value, str) or not value:
        raise InvalidValue(path, "text", "an empty one" if value == "" else one_line(value))
    try:
        size = len(value.encode())
    except UnicodeEncodeError as e:
        raise InvalidValue(path, "text in Unicode", ascii(value[e.start])) from e
    if size > max_bytes:
        raise InvalidValue(path, f"at most {max_bytes} bytes", size)


def _schema_text(schema: Any, path: str) -> str:
    """Return a JSON schema as JSON text. Raises InvalidValue for another type, or one that is too large or too deep."""
    if isinstance(schema, type) and callable(getattr(schema, "model_json_schema", None)):
        schema = schema.model_json_schema()  # type: ignore[attr-defined]  # a class of pydantic's, which is not needed here
    if isinstance(schema, str):
        _check_text(schema, path)
        try:
            schema = json_format.loads(schema)
        except (ValueError, RecursionError) as e:
            raise InvalidValue(path, "a JSON schema", one_line(str(e) or "one that is too deep")) from e
    if not isinstance(schema, dict | bool):
        expected = "a JSON schema as a dict, JSON text or a pydantic model"
        raise InvalidValue(path, expected, type(schema).__name__)
    _check_depth(schema, path)
    try:
        text = json_format.dumps(schema, allow_nan=False)
    except (TypeError, ValueError) as e:
        raise InvalidValue(path, "a JSON schema", one_line(str(e))) from e
    if len(text) > MAX_BYTES:
        raise InvalidValue(path, f"a JSON schema of at most {MAX_BYTES} bytes", len(text))
    return text


def _check_depth(schema: Any, path: str) -> None:
    level = [schema]
    for _ in range(2 * MAX_DEPTH):  # a level of a schema is a keyword's value and, in most, a name's
        level = [child for value in level if isinstance(value, dict | list) for child in _children(value)]
        if not level:
            return
    raise InvalidValue(path, f"a JSON schema of at most {MAX_DEPTH} levels", "a deeper one")


def _children(value: dict[str, Any] | list[Any]) -> list[Any]:
    return list(value.values()) if isinstance(value, dict) else value
