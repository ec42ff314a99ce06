"""Check chat messages, in the form of the reference's documentation, and find their images and videos.

A message is {"role": ..., "content": text or a list of parts}; a part is {"type": "text", "text": ...},
{"type": "image", "url"|"path"|"image"|"base64": ...} or {"type": "video", "url"|"path"|"video": ...}. Every error
names the message, the part and the key.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote, urlsplit

from PIL import Image

from ernie_export.common.errors import InvalidValue
from ernie_export.common.json_fields import one_line
from ernie_export.runtime.preprocess.image import ImageSource
from ernie_export.runtime.preprocess.inline_media import inline_bytes
from ernie_export.runtime.preprocess.video import SampledVideo, VideoSource

Message = Mapping[str, Any]

LONGEST_NAMED = 80  # characters of what cannot be read, in an error
ROLES = ("system", "user", "assistant", "tool")
SOURCE_KEYS = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}


@dataclass(frozen=True)
class Media:
    """The images and videos of a conversation, each list in its order.

    Attributes:
        images: Sources of the images.
        videos: Sources of the videos.
        fps: Frames a second of each video that is given as frames; None where not stated.
        image_names: Path of each image in the messages, such as "messages[0].content[1]".
        video_names: Path of each video.
    """

    images: tuple[ImageSource, ...]
    videos: tuple[VideoSource | SampledVideo, ...]
    fps: tuple[float | None, ...]
    image_names: tuple[str, ...]
    video_names: tuple[str, ...]


def normalise(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check a conversation and return it in one form.

    Keys that are None are dropped, and OpenAI's `image_url` parts become `image` parts. The argument is not changed.
    Raises InvalidValue for a wrong shape, role, type or key.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise InvalidValue("messages", "a list of messages", type(messages).__name__)
    if not messages:
        raise InvalidValue("messages", "at least one message", "none")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InvalidValue(where, '{"role": ..., "content": ...}', type(message).__name__)
    result = {key: value for key, value in message.items() if value is not None}
    if result.get("role") not in ROLES:
        raise InvalidValue(f"{where}.role", f"one of {', '.join(ROLES)}", _describe(message, "role"))
    if "tool_calls" in result:
        result["tool_calls"] = _tool_calls(result, where)
        result.setdefault("content", "")
    content = result.get("content")
    if isinstance(content, str):
        return result
    if isinstance(content, bytes) or not isinstance(content, Sequence):
        raise InvalidValue(f"{where}.content", "text or a list of parts", _describe(message, "content"))
    result["content"] = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return result


def _tool_calls(message: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """Return the calls of a message in OpenAI's form, with arguments as an object, which templates expect.

    Arguments that are no JSON object stay the text that they are. Raises InvalidValue for calls of another form.
    """
    calls = message["tool_calls"]
    if message["role"] != "assistant":
        raise InvalidValue(f"{where}.tool_calls", "the role assistant", message["role"])
    if isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
        raise InvalidValue(f"{where}.tool_calls", "a list of calls", type(calls).__name__)
    result: list[dict[str, Any]] = []
    for index, call in enumerate(calls):
        function = call.get("function") if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            form = '{"type": "function", "function": {"name": ..., "arguments": ...}}'
            raise InvalidValue(f"{where}.tool_calls[{index}]", form, one_line(call))
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            try:
                parsed = json.loads(arguments or "{}")
            except (ValueError, RecursionError):
                parsed = None
            arguments = parsed if isinstance(parsed, dict) else arguments
        result.append({**call, "function": {**function, "arguments": {} if arguments is None else arguments}})
    return result


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise InvalidValue(where, '{"type": ...}', type(part).__name__)
    result = {key: value for key, value in part.items() if value is not None}
    kind = result.get("type")
    if kind == "image_url":
        link = result.get("image_url")
        url = link.get("url") if isinstance(link, Mapping) else link
        if not isinstance(url, str):
            raise InvalidValue(f"{where}.image_url", "an address", _describe(part, "image_url"))
        return {"type": "image", "url": url}
    if kind == "text":
        if not isinstance(result.get("text"), str):
            raise InvalidValue(f"{where}.text", "text", _describe(part, "text"))
        return result
    if not isinstance(kind, str) or kind not in SOURCE_KEYS:
        raise InvalidValue(f"{where}.type", "text, image or video", _describe(part, "type"))
    keys = SOURCE_KEYS[kind]
    sources = [key for key in keys if key in result]
    if len(sources) != 1:
        raise InvalidValue(where, f"exactly one of {', '.join(keys)}", ", ".join(sources) or "none")
    return result


def media(messages: Sequence[Message], base: Path | None = None) -> Media:
    """Return the sources of a conversation's images and videos in their order.

    Relative paths start at `base`, or at the working folder where it is None. Raises InvalidValue for malformed
    messages, and for a remote address: nothing is fetched from a network.
    """
    images: list[ImageSource] = []
    videos: list[VideoSource | SampledVideo] = []
    fps: list[float | None] = []
    image_names: list[str] = []
    video_names: list[str] = []
    for index, message in enumerate(normalise(messages)):
        if isinstance(message["content"], str):
            continue
        for part_index, part in enumerate(message["content"]):
            where = f"messages[{index}].content[{part_index}]"
            kind = part["type"]
            if kind == "text":
                continue
            key = next(key for key in SOURCE_KEYS[kind] if key in part)
            if kind == "image":
                images.append(_image(part[key], key, f"{where}.{key}", base))
                image_names.append(where)
            else:
                videos.append(_video(part[key], f"{where}.{key}", base))
                fps.append(_frame_rate(part, where))
                video_names.append(where)
    return Media(tuple(images), tuple(videos), tuple(fps), tuple(image_names), tuple(video_names))


def _image(value: Any, key: str, where: str, base: Path | None) -> ImageSource:
    if isinstance(value, Image.Image | bytes):
        return value
    return path_or_bytes(value, where, base, expected="a local path or an image", always=key == "base64")


def _video(value: Any, where: str, base: Path | None) -> VideoSource | SampledVideo:
    if isinstance(value, SampledVideo | bytes) or hasattr(value, "__array_interface__"):
        return cast(VideoSource | SampledVideo, value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if all(isinstance(frame, Image.Image) or hasattr(frame, "__array_interface__") for frame in value):
            return value
        raise InvalidValue(where, "frames as images or arrays", type(value[0]).__name__)
    return path_or_bytes(value, where, base, expected="a local path or a list of frames")


def path_or_bytes(
    value: Any, where: str, base: Path | None = None, *, expected: str = "a local path", always: bool = False
) -> Path | bytes:
    """Return the path of a file, or the bytes of a data URI or base64.

    Args:
        value: A path, a `file:` address, a data URI or base64.
        where: What names it in errors.
        base: Where relative paths start; None for the working folder.
        expected: What an error says was expected.
        always: Whether it must be base64 or a data URI.

    Raises:
        InvalidValue: It is none of these, a damaged data URI, or an address that would be fetched.
    """
    if isinstance(value, str):
        try:
            inline = inline_bytes(value, always)
        except ValueError as e:
            raise InvalidValue(where, "a data URI or base64", e) from e
        if inline is not None:
            return inline
    return _path(value, where, base, expected)


def _frame_rate(part: Mapping[str, Any], where: str) -> float | None:
    rate = part.get("fps")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6):
        raise InvalidValue(f"{where}.fps", "frames a second", _describe(part, "fps"))
    return rate


def is_address(text: str) -> bool:
    """Return whether a text in place of a path is an address, a data URI or base64."""
    return "://" in text or text[:5].lower() in ("file:", "data:") or inline_bytes(text) is not None


def _path(value: Any, where: str, base: Path | None, expected: str) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise InvalidValue(where, expected, type(value).__name__)
    text = str(value)
    if isinstance(value, str) and ("://" in text or text[:5].lower() == "file:"):
        try:
            parts = urlsplit(text)
        except ValueError as e:  # brackets without an address in them
            raise InvalidValue(where, expected, one_line(text, LONGEST_NAMED), hint=str(e)) from e
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise InvalidValue(where, "a local path (nothing is fetched)", one_line(text, LONGEST_NAMED))
        text = unquote(parts.path)
    return (base or Path()) / text


def _describe(values: Mapping[str, Any], key: str) -> str:
    """Return a short description of the value of `key`, for an error."""
    if key not in values:
        return "no such key"
    value = values[key]
    if isinstance(value, str | int | float | None):
        return repr(value)[:80]
    return type(value).__name__
