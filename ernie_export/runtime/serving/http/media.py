"""Convert a request's messages to the runtime's: images and videos as bytes, from data URIs or allowed URLs."""

from collections.abc import Mapping
from typing import Any

from ernie_export.runtime.preprocess.inline_media import inline_bytes
from ernie_export.runtime.serving.http.errors import ApiError
from ernie_export.runtime.serving.http.fetch import Fetcher
from ernie_export.runtime.serving.http.schema import ImagePart, Message, TextPart, VideoPart

Messages = list[dict[str, Any]]


def media_of(messages: list[Message]) -> dict[str, ImagePart | VideoPart]:
    """Return the images and videos in their order, by the name of the field with their URL."""
    return {
        _param(i, j, part): part
        for i, message in enumerate(messages)
        for j, part in enumerate(() if isinstance(message.content, str) else message.content)
        if not isinstance(part, TextPart)
    }


async def fetch_all(messages: list[Message], fetcher: Fetcher, limit: int) -> dict[str, bytes]:
    """Return the contents of all http and https URLs, by URL.

    Args:
        messages: The messages of a request.
        fetcher: The client that fetches them.
        limit: Most bytes of all contents together.

    Raises:
        ApiError: 400, naming the field, if a URL is not allowed or cannot be fetched.
    """
    fetched: dict[str, bytes] = {}
    for param, part in media_of(messages).items():
        url = _url(part)
        if url[:8].lower().startswith(("http://", "https://")) and url not in fetched:
            fetched[url] = await fetcher.fetch(url, limit - sum(map(len, fetched.values())), param)
    return fetched


def runtime_messages(messages: list[Message], fetched: Mapping[str, bytes]) -> Messages:
    """Return the messages in the form that the preprocessor takes. Raises ApiError 400 that names the field."""
    converted: Messages = []
    for i, message in enumerate(messages):
        content: str | list[dict[str, Any]]
        if isinstance(message.content, str):
            content = message.content
        else:
            content = [_runtime_part(part, fetched, _param(i, j, part)) for j, part in enumerate(message.content)]
        role = "system" if message.role == "developer" else message.role
        others = message.model_dump(exclude_none=True, exclude={"role", "content"})
        converted.append({"role": role, "content": content, **others})
    return converted


def _runtime_part(part: TextPart | ImagePart | VideoPart, fetched: Mapping[str, bytes], param: str) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"type": "text", "text": part.text}
    kind = "image" if isinstance(part, ImagePart) else "video"
    url = _url(part)
    return {"type": kind, kind: fetched[url] if url in fetched else _data(url, param)}


def _param(message_index: int, part_index: int, part: TextPart | ImagePart | VideoPart) -> str:
    return f"messages.{message_index}.content.{part_index}.{part.type}" + ("" if isinstance(part, TextPart) else ".url")


def _url(part: ImagePart | VideoPart) -> str:
    return part.image_url.url if isinstance(part, ImagePart) else part.video_url.url


def _data(url: str, param: str) -> bytes:
    """Return the bytes of a data URI or of base64. Raises ApiError 400 for anything else."""
    try:
        content = inline_bytes(url)
    except ValueError as e:
        raise ApiError(400, f"{param}: expected a data URI in base64, found {e}", param, "invalid_base64") from e
    if content is None:
        raise ApiError(400, f"{param}: expected a data URI, or an http or https address", param, "invalid_url")
    return content
