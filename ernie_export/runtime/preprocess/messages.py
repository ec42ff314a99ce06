"""Chat messages as the reference's documentation writes them: checked, and their media found.

A message is {"role": ..., "content": text or a list of parts}; a part is {"type": "text", "text": ...},
{"type": "image", "url"|"path"|"image"|"base64": ...} or {"type": "video", "url"|"path"|"video": ...}. Every complaint
names the message, the part and the key.
"""

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from PIL import Image

from ernie_export.common.errors import UserError
from ernie_export.runtime.preprocess.image import ImageSource
from ernie_export.runtime.preprocess.video import SampledVideo, VideoSource

Message = Mapping[str, Any]

ROLES = ("system", "user", "assistant")
SOURCE_KEYS = {"image": ("image", "url", "path", "base64"), "video": ("video", "url", "path")}


@dataclass(frozen=True)
class Media:
    """The images and videos of a conversation, each list in its order; `fps` is one entry a video, None for a file.

    `image_names` and `video_names`: where each stands in the messages.
    """

    images: tuple[ImageSource, ...]
    videos: tuple[VideoSource | SampledVideo, ...]
    fps: tuple[float | None, ...]
    image_names: tuple[str, ...]
    video_names: tuple[str, ...]


def normalise(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Check a conversation and bring it to one form: keys that are None dropped, OpenAI's `image_url` parts as `image`.

    Raises UserError for a wrong shape, role, type or key. The messages given are left as they are.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise UserError(f"messages: expected a list of messages, found {type(messages).__name__}")
    if not messages:
        raise UserError("messages: expected at least one message, found none")
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise UserError(f'{where}: expected {{"role": ..., "content": ...}}, found {type(message).__name__}')
    result = {key: value for key, value in message.items() if value is not None}
    if result.get("role") not in ROLES:
        raise UserError(f"{where}.role: expected one of {', '.join(ROLES)}, found {_show(message, 'role')}")
    content = result.get("content")
    if isinstance(content, str):
        return result
    if isinstance(content, bytes) or not isinstance(content, Sequence):
        raise UserError(f"{where}.content: expected text or a list of parts, found {_show(message, 'content')}")
    result["content"] = [_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
    return result


def _part(part: Any, where: str) -> dict[str, Any]:
    if not isinstance(part, Mapping):
        raise UserError(f'{where}: expected {{"type": ...}}, found {type(part).__name__}')
    result = {key: value for key, value in part.items() if value is not None}
    kind = result.get("type")
    if kind == "image_url":
        link = result.get("image_url")
        url = link.get("url") if isinstance(link, Mapping) else link
        if not isinstance(url, str):
            raise UserError(f"{where}.image_url: expected an address, found {_show(part, 'image_url')}")
        return {"type": "image", "url": url}
    if kind == "text":
        if not isinstance(result.get("text"), str):
            raise UserError(f"{where}.text: expected text, found {_show(part, 'text')}")
        return result
    if not isinstance(kind, str) or kind not in SOURCE_KEYS:
        raise UserError(f"{where}.type: expected text, image or video, found {_show(part, 'type')}")
    keys = SOURCE_KEYS[kind]
    given = [key for key in keys if key in result]
    if len(given) != 1:
        raise UserError(f"{where}: expected exactly one of {', '.join(keys)}, found {', '.join(given) or 'none'}")
    return result


def media(messages: Sequence[Message], base: Path | None = None) -> Media:
    """The sources of a conversation's images and videos in their order.

    Relative paths are taken from `base` (the working folder where None). Raises UserError for a remote address: nothing
    is fetched from a network.
    """
    images: list[ImageSource] = []
    videos: list[VideoSource | SampledVideo] = []
    fps: list[float | None] = []
    image_names: list[str] = []
    video_names: list[str] = []
    for index, message in enumerate(normalise(messages)):
        if isinstance(message["content"], str):
            continue
        for place, part in enumerate(message["content"]):
            where = f"messages[{index}].content[{place}]"
            kind = part["type"]
            if kind == "text":
                continue
            key = next(key for key in SOURCE_KEYS[kind] if key in part)
            if kind == "image":
                images.append(_image(part[key], key, f"{where}.{key}", base))
                image_names.append(where)
            else:
                videos.append(_video(part[key], f"{where}.{key}", base))
                fps.append(_rate(part, where))
                video_names.append(where)
    return Media(tuple(images), tuple(videos), tuple(fps), tuple(image_names), tuple(video_names))


def _image(value: Any, key: str, where: str, base: Path | None) -> ImageSource:
    if isinstance(value, Image.Image | bytes):
        return value
    if isinstance(value, str) and (key == "base64" or value.startswith("data:image/")):
        try:
            return base64.b64decode(value.split(",", 1)[-1], validate=True)
        except (binascii.Error, ValueError) as e:
            raise UserError(f"{where}: expected base64, found {e}") from e
    return _path(value, where, base, "a local path or an image")


def _video(value: Any, where: str, base: Path | None) -> VideoSource | SampledVideo:
    if isinstance(value, SampledVideo | bytes) or hasattr(value, "__array_interface__"):
        return value
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if all(isinstance(frame, Image.Image) or hasattr(frame, "__array_interface__") for frame in value):
            return value
        raise UserError(f"{where}: expected frames as images or arrays, found {type(value[0]).__name__}")
    return _path(value, where, base, "a local path or a list of frames")


def _rate(part: Mapping[str, Any], where: str) -> float | None:
    rate = part.get("fps")
    if rate is not None and (isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1e6):
        raise UserError(f"{where}.fps: expected frames a second, found {_show(part, 'fps')}")
    return rate


def _path(value: Any, where: str, base: Path | None, expected: str) -> Path:
    if not isinstance(value, str | Path) or not str(value):
        raise UserError(f"{where}: expected {expected}, found {type(value).__name__}")
    text = str(value)
    if isinstance(value, str) and "://" in text:
        try:
            parts = urlsplit(text)
        except ValueError as e:  # brackets without an address in them
            raise UserError(f"{where}: expected {expected}, found {text!r} ({e})") from e
        if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
            raise UserError(f"{where}: expected a local path (nothing is fetched), found {text}")
        text = unquote(parts.path)
    return (base or Path()) / text


def _show(values: Mapping[str, Any], key: str) -> str:
    """A short description of what stands under a key, for an error."""
    if key not in values:
        return "no such key"
    value = values[key]
    if isinstance(value, str | int | float | None):
        return repr(value)[:80]
    return type(value).__name__
