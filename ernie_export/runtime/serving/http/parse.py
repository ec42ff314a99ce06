"""Parse a request's body.

As at OpenAI, an unknown field is refused by name. A known one of OpenAI or vLLM that this server does not support is
refused too, unless its value has no effect. Null has none in any field.
"""

from collections.abc import Iterator
from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ValidationError

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.serving.body_size import check_size
from ernie_export.runtime.serving.http.completion_schema import CompletionRequest
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.neutral_fields import drop_neutral
from ernie_export.runtime.serving.http.schema import ChatRequest, GenerationFields, TextPart
from ernie_export.runtime.serving.http.tool_schema import NamedTool

Form = TypeVar("Form", bound=BaseModel)

MAX_VALUES = 65_536  # in a body, keys not counted: each takes memory, and time to check
MAX_KEYS = 256  # of one object
# What is expected where pydantic finds an error of a type; in braces what it says of the error.
_EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "an object",
    "float_type": "a number",
    "greater_than_equal": "at least {ge}",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "list_type": "a list",
    "literal_error": "{expected}",
    "missing": "a value",
    "model_type": "an object",
    "string_pattern_mismatch": "another text",
    "string_too_long": "at most {max_length} characters",
    "string_type": "text",
    "string_unicode": "text in Unicode",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
    "union_tag_invalid": "{expected_tags}",
    "union_tag_not_found": "an object with a type of {types}",
}
_KINDS: dict[type[Any], str] = {dict: "an object", list: "a list", str: "text"}


def parse_chat(body: bytes | bytearray, max_text: int) -> ChatRequest:
    """Read a request for a chat completion. Raises ApiError as `read_document` and `validate` do."""
    return check_chat(read_document(body, max_text), max_text)


def check_chat(document: dict[str, Any], max_text: int) -> ChatRequest:
    """Return a request for a chat completion. Raises ApiError 400 that names the field, 413 for too much text."""
    request = validate(ChatRequest, drop_neutral(document))
    if sum(map(len, _texts(request))) > max_text:
        raise ApiError(413, f"messages: expected at most {max_text} characters of text", "messages", "body_too_large")
    if request.continue_final_message and request.add_generation_prompt:
        problem = "continue_final_message: expected no add_generation_prompt beside it"
        raise ApiError(400, problem, "continue_final_message", "invalid_value")
    if request.top_logprobs and not request.logprobs:
        raise ApiError(400, "top_logprobs: expected logprobs true beside it", "top_logprobs", "invalid_value")
    _check_stream(request)
    _check_tool_choice(request)
    return request


def parse_completion(body: bytes | bytearray, max_text: int) -> CompletionRequest:
    """Read a request for completions of prompts. Raises ApiError as `read_document` and `validate` do."""
    document = read_document(body, max_text)
    echo = document.pop("echo", None)
    request = validate(CompletionRequest, {**drop_neutral(document), "echo": echo})
    if request.max_tokens == 0 and not request.echo and request.prompt_logprobs is None:
        problem = "max_tokens: expected at least 1 without echo and prompt_logprobs, found 0"
        raise ApiError(400, problem, "max_tokens", "invalid_value")
    _check_stream(request)
    return request


def read_document(body: bytes | bytearray, max_text: int) -> dict[str, Any]:
    """Return the JSON object of a body. Raises ApiError 400, and 413 for more text than `max_text` bytes.

    Small values take much more memory and time than they are long: a body of nothing but these would stop the server.
    So text and marks are bounded before they are parsed, and the number of values before they are validated.
    """
    try:
        check_size("the body", body, max_body=len(body), max_text=max_text)  # it was bounded while it was read
    except InvalidValue as e:
        raise ApiError(413, str(e), code="body_too_large") from e
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise ApiError(400, f"the body: expected JSON, found {e}", code="invalid_json") from e
    if not isinstance(document, dict):
        raise ApiError(400, f"the body: expected an object, found {type(document).__name__}", code="invalid_json")
    _check_size(document)
    return document


def validate(kind: type[Form], document: dict[str, Any]) -> Form:
    """Return a document as a model of pydantic's. Raises ApiError 400 that names the field.

    Every fault that pydantic finds becomes an object: validation ends with the first fault of a list.
    """
    try:
        return kind.model_validate(document)
    except ValidationError as e:
        raise _to_api_error(e) from e


def _check_stream(request: GenerationFields) -> None:
    if request.stream and request.prompt_logprobs is not None:
        problem = "prompt_logprobs: expected stream false beside it"
        raise ApiError(400, problem, "prompt_logprobs", "invalid_value")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: expected stream true beside it", "stream_options", "invalid_value")


def _check_tool_choice(request: ChatRequest) -> None:
    """Raise ApiError 400 for a choice of a tool that the request does not have."""
    choice = request.tool_choice
    names = [tool.function.name for tool in request.tools or ()]
    if choice == "required" and not names:
        raise ApiError(400, "tool_choice: expected tools beside it", "tool_choice", "invalid_value")
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        problem = f"tool_choice.function.name: expected one of the tools, found {one_line(choice.function.name)}"
        raise ApiError(400, problem, "tool_choice.function.name", "invalid_value")
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: expected a name of its own for each, found one twice", "tools", "invalid_value")


def _check_size(document: dict[str, Any]) -> None:
    """Raise ApiError 400 for a body of more values than any conversation has."""
    stack: list[Any] = [document]
    values = 0
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            if len(value) > MAX_KEYS:
                problem = f"expected at most {MAX_KEYS} keys in an object, found {len(value)}"
                raise ApiError(400, f"the body: {problem}", code="too_large")
            children = list(value.values())
        elif isinstance(value, list):
            children = value
        else:
            continue
        values += len(children)
        if values > MAX_VALUES:
            raise ApiError(400, f"the body: expected at most {MAX_VALUES} values, found more", code="too_large")
        stack += children


def _texts(request: ChatRequest) -> Iterator[str]:
    """Yield every text of a request that reaches the tokenizer."""
    yield from (tool.model_dump_json() for tool in request.tools or ())
    for message in request.messages:
        yield message.role
        yield message.name or ""
        yield message.reasoning_content or message.reasoning or ""
        yield from (call.model_dump_json() for call in message.tool_calls or ())
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text for part in message.content if isinstance(part, TextPart))


def _to_api_error(error: ValidationError) -> ApiError:
    """Return the error at the deepest path: the form of a value that fits best is the one that fails there.

    Among equals, one of the wrong type says least.
    """
    deepest = max(error.errors(include_url=False), key=_depth)
    unknown = deepest["type"] == "extra_forbidden"
    param = ".".join(_names(deepest["loc"]))
    message = "unknown field" if unknown else _describe(deepest)
    return ApiError(400, f"{param}: {message}", param, "unknown_parameter" if unknown else "invalid_value")


def _describe(error: Any) -> str:
    """Return what an error of pydantic's expects and finds, in our words."""
    context = error.get("ctx", {})
    if error["type"] == "union_tag_not_found":
        of_form = error["loc"][0] == "response_format"
        context["types"] = "text, json_object or json_schema" if of_form else "text, image_url or video_url"
    expected = _EXPECTED.get(error["type"], "another value").format(**context).replace("'", "")
    value = error["input"]
    if error["type"] in ("missing", "union_tag_not_found"):
        found = "none"
    elif error["type"] in ("literal_error", "union_tag_invalid"):
        found = one_line(context.get("tag", value))
    elif "actual_length" in context:
        found = f"{context['actual_length']}"
    else:  # a value may be as large as a body: it is shown only if it is none of these
        found = _KINDS[type(value)] if type(value) in _KINDS else one_line(value)
    return f"expected {expected}, found {found}"


def _depth(error: Any) -> tuple[int, bool]:
    return len(error["loc"]), not error["type"].endswith("_type")


def _names(path: tuple[int | str, ...]) -> list[str]:
    """Return the request's names in pydantic's path, without forms of a value: "str", "list[...]", an object's type."""
    names: list[str] = []
    for before, name in zip((None, *path), path, strict=False):
        form = isinstance(name, str) and ("[" in name or name in ("str", "constrained-str"))
        by_type = isinstance(before, int) and name in ("text", "image_url", "video_url")
        if not (form or by_type or before == "response_format"):
            names.append(str(name)[:80])
    return names
