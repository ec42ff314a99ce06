"""Read a request of /v1/responses as one for a chat completion, which asks the same of the model.

Nothing is stored: a request brings its whole conversation, and one that refers to an earlier response is refused. What
is not the interface's own (`top_k`, `seed`, `chat_template_kwargs`, …) means what it means in a chat completion.
"""

from dataclasses import dataclass
from typing import Any

from ernie_export.common.json_fields import one_line
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.schema import MAX_ITEMS

Json = dict[str, Any]

# Fields of a chat completion that are others here.
_OF_CHATS = (
    "echo", "functions", "function_call", "logprobs", "max_completion_tokens", "max_tokens", "messages", "n",
    "reasoning_effort", "response_format",
)  # fmt: skip
# Values without effect of fields that are known but not supported; None is one for every field.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "background": (False,), "context_management": (), "conversation": (), "max_tool_calls": (), "moderation": (),
    "previous_response_id": (), "prompt": (), "store": (False,), "truncation": ("disabled",),
}  # fmt: skip
_LOGPROBS = "message.output_text.logprobs"
_INCLUDED = (_LOGPROBS, "reasoning.encrypted_content")  # of the second there is none
_PART_TYPES = {"input_text": "text", "output_text": "text", "text": "text", "reasoning_text": "text"}
# The names in an error, as this interface has them.
_NAMES = (
    ("response_format", "text.format"),
    ("max_completion_tokens", "max_output_tokens"),
    ("reasoning_effort", "reasoning.effort"),
)


@dataclass(frozen=True)
class Conversation:
    """A request as a chat completion.

    Attributes:
        document: The chat completion's body.
        origins: For each of its messages, the name of the field that it comes from.
    """

    document: Json
    origins: tuple[str, ...]

    def renamed(self, error: ApiError) -> ApiError:
        """Return an error with the field's name in this interface."""
        if error.param is None:
            return error
        param = error.param
        if param.startswith("messages."):
            index, dot, rest = param.removeprefix("messages.").partition(".")
            param = self.origins[int(index)] + dot + rest
        elif param == "messages":
            param = "input"
        elif param.startswith("tools."):
            param = param.replace(".function", "", 1)
        for chat_name, name in _NAMES:
            if param.startswith(chat_name):
                param = name + param.removeprefix(chat_name)
        message = (
            param + error.message.removeprefix(error.param) if error.message.startswith(error.param) else error.message
        )
        return ApiError(error.status, message, param, error.code, error.headers)


def to_chat(document: Json) -> Conversation:
    """Return a request as a chat completion. Raises ApiError 400 that names the field."""
    rest = {name: value for name, value in document.items() if value is not None}
    for name in _OF_CHATS:
        if name in rest:
            raise ApiError(400, f"{name}: unknown field", name, "unknown_parameter")
    for name, values in _NEUTRAL.items():
        if name in rest and rest.pop(name) not in values:
            raise ApiError(400, f"{name}: not supported, nothing is stored", name, "unsupported_parameter")
    messages = _Messages()
    if (instructions := rest.pop("instructions", None)) is not None:
        messages.add("instructions", {"role": "system", "content": instructions})
    messages.read(rest.pop("input", None))
    chat: Json = {"messages": messages.messages, "max_completion_tokens": rest.pop("max_output_tokens", None)}
    include = rest.pop("include", [])
    if not isinstance(include, list) or any(name not in _INCLUDED for name in include):
        problem = f"include: expected some of {', '.join(_INCLUDED)}, found {one_line(include)}"
        raise ApiError(400, problem, "include", "unsupported_parameter")
    if _LOGPROBS in include:
        chat["logprobs"] = True
    elif not rest.get("top_logprobs"):
        rest.pop("top_logprobs", None)
    text = _fields(rest.pop("text", {}), "text", ("format", "verbosity"))
    chat["response_format"] = _response_format(text.get("format"))
    chat["verbosity"] = text.get("verbosity") if text.get("verbosity") != "medium" else None
    reasoning = _fields(rest.pop("reasoning", {}), "reasoning", ("effort", "summary", "generate_summary"))
    chat["reasoning_effort"] = reasoning.get("effort")  # there are no summaries: thoughts come as they are
    if (tools := rest.pop("tools", None)) is not None:
        chat["tools"] = (
            [_tool(tool, f"tools.{i}") for i, tool in enumerate(tools)] if isinstance(tools, list) else tools
        )
    choice = rest.pop("tool_choice", None)
    if isinstance(choice, dict):
        choice = {"type": choice.get("type"), "function": {k: v for k, v in choice.items() if k != "type"}}
    return Conversation({**rest, **chat, "tool_choice": choice}, tuple(messages.origins))


class _Messages:
    """The messages that items of the input make. Items of the assistant that follow each other make one."""

    def __init__(self) -> None:
        self.messages: list[Json] = []
        self.origins: list[str] = []

    def add(self, origin: str, message: Json) -> None:
        """Add a message."""
        self.messages.append(message)
        self.origins.append(origin)

    def read(self, items: Any) -> None:
        """Add the messages of an input."""
        if isinstance(items, str):
            self.add("input", {"role": "user", "content": items})
        elif not isinstance(items, list) or not items:
            found = "none" if items is None or items == [] else one_line(items)
            raise ApiError(400, f"input: expected text or a list of items, found {found}", "input", "invalid_value")
        elif len(items) > MAX_ITEMS:
            raise ApiError(400, f"input: expected at most {MAX_ITEMS} items", "input", "invalid_value")
        else:
            for index, item in enumerate(items):
                self._read_item(item, f"input.{index}")

    def _read_item(self, item: Any, where: str) -> None:
        if not isinstance(item, dict):
            raise ApiError(400, f"{where}: expected an object, found {one_line(item)}", where, "invalid_value")
        item = {
            name: value for name, value in item.items() if value is not None and name not in ("id", "status", "phase")
        }
        kind = item.pop("type", "message")
        if kind == "message" and item.get("role") == "assistant":
            _fields(item, where, ("role", "content"))
            last = self.messages[-1] if self.messages else {}
            after_thoughts = last.get("content") == "" and "tool_calls" not in last
            message = self._assistant(where, new=not after_thoughts)
            message["content"] = _content(item.get("content", ""), f"{where}.content")
        elif kind == "message":
            _fields(item, where, ("role", "content", "name"))
            content = {"content": _content(item["content"], f"{where}.content")} if "content" in item else {}
            self.add(where, {**item, **content})
        elif kind == "function_call":
            _fields(item, where, ("call_id", "name", "arguments"))
            function = {"name": item.get("name"), "arguments": item.get("arguments")}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            self._assistant(where, new=False).setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            _fields(item, where, ("call_id", "output"))
            output = _content(item.get("output", ""), f"{where}.output")
            self.add(where, {"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
        elif kind == "reasoning":
            _fields(item, where, ("content", "summary", "encrypted_content"))
            parts = _content(item.get("content", []), f"{where}.content")
            thoughts = parts if isinstance(parts, str) else "".join(str(part.get("text", "")) for part in parts)
            if thoughts:
                self._assistant(where, new=True)["reasoning_content"] = thoughts
        else:
            problem = f"{where}.type: expected message, function_call, function_call_output or reasoning"
            raise ApiError(400, f"{problem}, found {one_line(kind)}", f"{where}.type", "invalid_value")

    def _assistant(self, where: str, new: bool) -> Json:
        """Return the message of the assistant that an item belongs to: a new one, or the last if it is one."""
        if new or not self.messages or self.messages[-1]["role"] != "assistant":
            self.add(where, {"role": "assistant", "content": ""})
        return self.messages[-1]


def _content(content: Any, where: str) -> Any:
    """Return a content as a chat completion has it."""
    if not isinstance(content, list):
        return content
    return [_part(part, f"{where}.{index}") for index, part in enumerate(content)]


def _part(part: Any, where: str) -> Json:
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _PART_TYPES:
        _fields(part, where, ("type", "text", "annotations", "logprobs", "cache_control"))
        return {"type": _PART_TYPES[kind], "text": part.get("text")}
    if kind == "input_image" and part.get("file_id") is None:
        _fields(part, where, ("type", "image_url", "detail", "file_id"))
        detail = {"detail": part["detail"]} if part.get("detail") is not None else {}
        return {"type": "image_url", "image_url": {"url": part.get("image_url"), **detail}}
    if kind == "input_video":
        _fields(part, where, ("type", "video_url"))
        return {"type": "video_url", "video_url": {"url": part.get("video_url")}}
    problem = f"{where}: expected input_text, input_image with an image_url, or input_video, found {one_line(kind)}"
    raise ApiError(400, problem, where, "invalid_value")


def _tool(tool: Any, where: str) -> Json:
    if not isinstance(tool, dict) or tool.get("type") != "function":
        kind = tool.get("type") if isinstance(tool, dict) else tool
        problem = f"{where}.type: expected function, found {one_line(kind)}"
        raise ApiError(400, problem, f"{where}.type", "unsupported_parameter")
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}


def _response_format(form: Any) -> Any:
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        return form
    return {"type": "json_schema", "json_schema": {name: value for name, value in form.items() if name != "type"}}


def _fields(value: Any, where: str, known: tuple[str, ...]) -> Json:
    """Return an object. Raises ApiError 400 for another value, or a field that is not known."""
    if not isinstance(value, dict):
        raise ApiError(400, f"{where}: expected an object, found {one_line(value)}", where, "invalid_value")
    for name, field in value.items():
        if name not in known and field is not None:
            param = f"{where}.{str(name)[:80]}"
            raise ApiError(400, f"{param}: unknown field", param, "unknown_parameter")
    return value
