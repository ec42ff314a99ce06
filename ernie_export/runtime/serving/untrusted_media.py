"""Pictures and clips from someone who is not to be trusted: where they may come from, and what may be decoded."""

import base64
import binascii
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ernie_export.common.errors import UserError
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.messages import SOURCE_KEYS, Message, normalise
from ernie_export.runtime.preprocess.video_decode import DecodeLimits
from ernie_export.runtime.serving.http.settings import Settings

# Pillow's decoders for what is met on the web. Others have run programs (EPS) or are rarely used and less tried.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def confine(messages: Sequence[Message], folder: Path | None) -> list[dict[str, Any]]:
    """The messages with every picture and clip as bytes, or as a path in `folder` (None: no paths).

    Relative paths are taken from `folder`. Raises UserError for messages of a wrong shape, for what is no data URI and
    lies outside the folder, and says no more about the file system than that.
    """
    conversation = normalise(messages)
    for index, message in enumerate(conversation):
        if not isinstance(message["content"], str):
            for place, part in enumerate(message["content"]):
                if part["type"] != "text":
                    key = next(key for key in SOURCE_KEYS[part["type"]] if key in part)
                    part[key] = _source(part[key], key, f"messages[{index}].content[{place}].{key}", folder)
    return conversation


def count_media(messages: Sequence[Message]) -> int:
    """Pictures and clips of a conversation that `confine` returned."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return sum(part["type"] != "text" for part in parts)


def _source(value: Any, key: str, where: str, folder: Path | None) -> Any:
    expected = "a data URI" if folder is None else "a data URI or a path in the folder of media"
    if not isinstance(value, str):
        raise UserError(f"{where}: expected {expected}, found {type(value).__name__}")
    if key == "base64" or value.startswith("data:"):
        header, _, data = value.rpartition(",")
        if header and not header.endswith(";base64"):
            raise UserError(f"{where}: expected a data URI in base64, found {header[:40]!r}")
        try:
            return base64.b64decode(data, validate=True)
        except (binascii.Error, ValueError) as e:
            raise UserError(f"{where}: expected base64, found {e}") from e
    if folder is None:
        raise UserError(f"{where}: expected {expected}, found {value[:80]!r}")
    try:
        path = (folder / value).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, links in a circle
        inside = False
    if not inside:
        raise UserError(f"{where}: expected {expected}, found {value[:80]!r}")
    return path


def limited(preprocessor: Preprocessor, settings: Settings, media: int, deadline: float) -> Preprocessor:
    """The preprocessor for one request from outside: what it may decode is shared out among its pictures and clips.

    deadline: by time.monotonic(), when decoding a clip is given up.
    """
    share = settings.max_pixels // max(media, 1)
    images, videos = preprocessor.images, preprocessor.videos
    return replace(
        preprocessor,
        images=replace(images, max_source_pixels=min(images.max_source_pixels, share), formats=IMAGE_FORMATS),
        videos=replace(
            videos,
            limits=DecodeLimits(
                max_source_pixels=min(videos.limits.max_source_pixels, share),
                max_source_frames=settings.max_frames,
                max_source_seconds=settings.max_seconds,
                max_sampled_pixels=share,
                deadline=deadline,
            ),
        ),
    )
