"""The fields of a request: those of OpenAI's chat completions, and vLLM's extras that the sampler supports.

As at OpenAI, an unknown field is refused by name. A known one of OpenAI or vLLM that this server does not support is
refused too, unless its value has no effect (an empty list, a penalty of 0). Null has none in any field.
"""

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.serving.body_size import check_size
from ernie_export.runtime.serving.http.errors import ApiError

MAX_VALUES = 65_536  # in a body, keys not counted: each takes memory, and time to check
MAX_KEYS = 256  # of one object
MAX_ITEMS = 4096  # messages of a request, and parts of a message
MAX_STOP_LENGTH = 256
MAX_TYPE_LENGTH = 256  # of a part; the known ones are shorter
# Values without effect of fields that are known but not supported. Load generators and chat pages send many of them.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "add_special_tokens": (False,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (False,),
    "documents": ([],),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "include_reasoning": (True,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "media_io_kwargs": ({},),
    "min_p": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "presence_penalty": (0,),
    "priority": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "structured_outputs": (),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "truncate_prompt_tokens": (),
    "use_beam_search": (False,),
    "verbosity": (),
    "web_search_options": (),
}
# Fields of bookkeeping, on which no answer depends.
_INERT = ("metadata", "prompt_cache_key", "request_id", "safety_identifier", "service_tier", "user")
# The same of an assistant's message, which the openai client sends back as it received it.
_NEUTRAL_OF_MESSAGE: dict[str, tuple[Any, ...]] = {
    "annotations": ([],), "audio": (), "function_call": (), "refusal": (), "tool_calls": ([],)
}  # fmt: skip


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
    "string_too_long": "at most {max_length} characters",
    "string_type": "text",
    "string_unicode": "text in Unicode",
    "too_long": "at most {max_length} items",
    "too_short": "at least {min_length} items",
    "union_tag_invalid": "{expected_tags}",
    "union_tag_not_found": "an object with a type of 'text', 'image_url' or 'video_url'",
}
_KINDS: dict[type[Any], str] = {dict: "an object", list: "a list", str: "text"}


def _whole(value: Any) -> Any:
    """Return a number without a fraction as a whole number: JSON writers of some languages know no other."""
    return int(value) if type(value) is float and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Part):
    """A text in a message."""

    type: Literal["text"]
    text: str


class Link(_Part):
    """The URL of an image or video: a data URI in base64, or an http or https URL."""

    url: str


class ImageLink(Link):
    """The URL of an image. `detail` has no effect: an image is always processed in full."""

    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(_Part):
    """An image in a message."""

    type: Literal["image_url"]
    image_url: ImageLink


class VideoPart(_Part):
    """A video in a message."""

    type: Literal["video_url"]
    video_url: Link


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Part):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_ITEMS)]
    name: str | None = None


class StreamOptions(_Part):
    """Options of a stream. `include_obfuscation`, padding against eavesdroppers, is not supported.

    `continuous_usage_stats`, an extra of vLLM, asks for the usage so far in every chunk.
    """

    include_usage: bool = False
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(_Part):
    """The format of the answer, which is text; JSON is not supported."""

    type: Literal["text"]


class TemplateOptions(_Part):
    """Variables of the chat template, an extra of vLLM."""

    enable_thinking: bool | None = None


StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]


class ChatRequest(_Part):
    """A request for a chat completion."""

    model: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    max_tokens: Whole | None = Field(None, ge=1)
    max_completion_tokens: Whole | None = Field(None, ge=1)
    min_tokens: Whole | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    n: Whole | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: Whole | None = Field(None, ge=-1, le=2**31)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: Whole | None = Field(None, ge=-(2**63), lt=2**64)
    logprobs: bool | None = None
    top_logprobs: Whole | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None


def parse(body: bytes | bytearray, max_text: int) -> ChatRequest:
    """Read a request's body. Raises ApiError 400 that names the field, 413 for more text than `max_text` bytes.

    Small values take much more memory and time than they are long, and every fault that pydantic finds becomes an
    object: a body of nothing but these would stop the server. So text and marks are bounded before they are parsed, the
    number of values before they are validated, and validation ends with the first fault of a list.
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
    document = {name: value for name, value in document.items() if name not in _INERT and value is not None}
    document = _without_neutral(document, _NEUTRAL, "")
    messages = document.get("messages")
    if isinstance(messages, list):
        document["messages"] = [
            _bare_message(message, f"messages.{i}.") if isinstance(message, dict) else message
            for i, message in enumerate(messages)
        ]
    try:
        request = ChatRequest.model_validate(document)
    except ValidationError as e:
        raise _to_api_error(e) from e
    if sum(map(len, _texts(request))) > max_text:
        raise ApiError(413, f"messages: expected at most {max_text} characters of text", "messages", "body_too_large")
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs: expected logprobs true beside it", "top_logprobs", "invalid_value")
    if request.stream_options is not None and not request.stream:
        raise ApiError(400, "stream_options: expected stream true beside it", "stream_options", "invalid_value")
    return request


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
    for message in request.messages:
        yield message.role
        yield message.name or ""
        if isinstance(message.content, str):
            yield message.content
        else:
            yield from (part.text for part in message.content if isinstance(part, TextPart))


def _without_neutral(document: dict[str, Any], neutral: dict[str, tuple[Any, ...]], where: str) -> dict[str, Any]:
    for name, values in neutral.items():
        value = document.get(name)
        if value is not None and value not in values:
            raise ApiError(400, f"{where}{name}: not supported", where + name, "unsupported_parameter")
    return {name: value for name, value in document.items() if name not in neutral}


def _bare_message(message: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a message without what clients add for others: its id, marks for caches, null for an empty answer."""
    bare = _without_neutral(message, _NEUTRAL_OF_MESSAGE, where)
    bare.pop("id", None)
    if bare.get("content", "") is None and bare.get("role") == "assistant":
        bare["content"] = ""
    if isinstance(bare.get("content"), list):
        bare["content"] = [_bare_part(part) if isinstance(part, dict) else part for part in bare["content"]]
    return bare


def _bare_part(part: dict[str, Any]) -> dict[str, Any]:
    """Return a part without marks for caches, and with the beginning of its type: pydantic writes it in an error."""
    bare = {name: value for name, value in part.items() if name != "cache_control"}
    if isinstance(bare.get("type"), str):
        bare["type"] = bare["type"][:MAX_TYPE_LENGTH]
    return bare


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
    """Return the request's names in pydantic's path, without forms of a value: "str", "list[...]", a part's type."""
    names: list[str] = []
    for before, name in zip((None, *path), path, strict=False):
        form = isinstance(name, str) and ("[" in name or name in ("str", "constrained-str"))
        if not form and not (isinstance(before, int) and name in ("text", "image_url", "video_url")):
            names.append(str(name)[:80])
    return names
