"""What a request may say: OpenAI's chat completion fields, and those extras of vLLM's that the sampler has.

As at OpenAI, an unknown field is refused by name. A known one that this server cannot honour is refused too, unless its
value asks for nothing (null, an empty list, a penalty of 0): it never counts for something that it is not.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import pydantic_core
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ernie_export.runtime.serving.http.errors import ApiError

# Commas and brackets of a body, in its text too: parsing holds the interpreter's lock for as long as there are values.
MAX_MARKS = 2**18
MAX_VALUES = 65_536  # in a body, keys not counted: each takes memory, and time to check
MAX_KEYS = 256  # of one object
MAX_ITEMS = 4096  # messages of a request, and parts of a message
MAX_STOP_LENGTH = 256
_BASE64 = re.compile(rb"[A-Za-z0-9+/=\\]{1024,}")
# Values that ask for nothing, of fields that are known and not supported; None always does.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "frequency_penalty": (0,),
    "function_call": ("none",),
    "functions": ([],),
    "logit_bias": ({},),
    "modalities": (["text"],),
    "parallel_tool_calls": (False, True),
    "prediction": (),
    "presence_penalty": (0,),
    "reasoning_effort": (),
    "store": (False,),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
# What OpenAI takes for its own bookkeeping: no answer depends on it.
_INERT = ("metadata", "prompt_cache_key", "safety_identifier", "service_tier", "user")
# Of an answer that comes back as a turn, as the openai client's objects have it.
_NEUTRAL_OF_TURN: dict[str, tuple[Any, ...]] = {
    "annotations": ([],), "audio": (), "function_call": (), "refusal": (), "tool_calls": ([],)
}  # fmt: skip


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class TextPart(_Part):
    """Text."""

    type: Literal["text"]
    text: str


class Link(_Part):
    """Where a picture or clip is: a data URI with base64, or an address."""

    url: str


class ImageLink(Link):
    """`detail` as a matter of form: a picture is always seen whole."""

    detail: Literal["auto", "high"] | None = None


class ImagePart(_Part):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageLink


class VideoPart(_Part):
    """A clip."""

    type: Literal["video_url"]
    video_url: Link


Part = Annotated[TextPart | ImagePart | VideoPart, Field(discriminator="type")]


class Message(_Part):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=MAX_ITEMS)]
    name: str | None = None


class StreamOptions(_Part):
    """`include_obfuscation` asks for padding against eavesdroppers, of which there is none here."""

    include_usage: bool = False
    include_obfuscation: Literal[False] | None = None


class ResponseFormat(_Part):
    """Text. JSON would have to be enforced token by token, which this server doesn't do."""

    type: Literal["text"]


class TemplateOptions(_Part):
    """What the chat template may be told (vLLM's extra)."""

    enable_thinking: bool | None = None


StopString = Annotated[str, Field(max_length=MAX_STOP_LENGTH)]


class ChatRequest(_Part):
    """A request for a chat completion."""

    model: str | None = None
    messages: Annotated[list[Message], Field(fail_fast=True, min_length=1, max_length=MAX_ITEMS)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    min_tokens: int | None = Field(None, ge=0)
    n: int | None = Field(None, ge=1, le=128)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    chat_template_kwargs: TemplateOptions | None = None


def parse(body: bytes, max_text: int) -> ChatRequest:
    """Read a request's body. Raises ApiError 400 that names the field, 413 for more text than `max_text` bytes.

    Small values take much more memory and time than they are long, and every fault that pydantic finds becomes an
    object: a body of nothing but these would stop the server. So text and marks are bounded before they are parsed, the
    number of values before they are validated, and validation ends with the first fault of a list.
    """
    if sum(body.count(mark) for mark in (b",", b"{", b"[")) > MAX_MARKS:
        raise ApiError(413, f"the body: expected at most {MAX_MARKS} commas and brackets", code="body_too_large")
    if len(body) > max_text and len(_BASE64.sub(b"", body)) > max_text:
        raise ApiError(413, f"the body: expected at most {max_text} bytes besides media", code="body_too_large")
    try:
        document = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as e:
        raise ApiError(400, f"the body: expected JSON, found {e}", code="invalid_json") from e
    if not isinstance(document, dict):
        raise ApiError(400, f"the body: expected an object, found {type(document).__name__}", code="invalid_json")
    _check_size(document)
    document = {name: value for name, value in document.items() if name not in _INERT}
    document = _without_neutral(document, _NEUTRAL, "")
    messages = document.get("messages")
    if isinstance(messages, list):
        document["messages"] = [
            _without_neutral(turn, _NEUTRAL_OF_TURN, f"messages.{i}.") if isinstance(turn, dict) else turn
            for i, turn in enumerate(messages)
        ]
    try:
        request = ChatRequest.model_validate(document)
    except ValidationError as e:
        raise _explained(e) from e
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


def _explained(error: ValidationError) -> ApiError:
    """What is wrong in the deepest place: of a value's several forms, the one that fits best complains there."""
    deepest = max(error.errors(include_url=False, include_input=False, include_context=False), key=_depth)
    unknown = deepest["type"] == "extra_forbidden"
    param = ".".join(_names(deepest["loc"]))
    message = "unknown field" if unknown else deepest["msg"]
    return ApiError(400, f"{param}: {message}", param, "unknown_parameter" if unknown else "invalid_value")


def _depth(error: Any) -> int:
    return len(error["loc"])


def _names(places: tuple[int | str, ...]) -> list[str]:
    """The sender's own names in pydantic's path, which names forms as well: "str", "list[...]", a part's type."""
    names: list[str] = []
    for before, place in zip((None, *places), places, strict=False):
        form = isinstance(place, str) and ("[" in place or place in ("str", "constrained-str"))
        if not form and not (isinstance(before, int) and place in ("text", "image_url", "video_url")):
            names.append(str(place)[:80])
    return names
