"""Images and videos of untrusted requests: where they may come from, and what may be decoded."""

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ernie_export.common.errors import InvalidMedia
from ernie_export.runtime.preprocess import Preprocessor
from ernie_export.runtime.preprocess.inline_media import inline_bytes
from ernie_export.runtime.preprocess.messages import SOURCE_KEYS, Message, normalise
from ernie_export.runtime.preprocess.video_limits import UNTRUSTED_DECODERS, DecodeLimits
from ernie_export.runtime.serving.media_limits import MediaLimits

# Pillow's decoders for what is met on the web. Others have run programs (EPS) or are rarely used and less tried.
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")


def confine(
    messages: Sequence[Message], folder: Path | None, max_file_bytes: int = MediaLimits.max_file_bytes
) -> list[dict[str, Any]]:
    """Return the messages with every image and video as bytes, read from `folder` where they are paths.

    A file is read here and now: what stands under its name later plays no part, nor do files that it may refer to.

    Args:
        messages: The conversation of an untrusted request.
        folder: Where paths may point to, and relative ones start; None: no paths.
        max_file_bytes: Most bytes of all images and videos, beyond which no file is read.

    Raises:
        InvalidValue: The messages have a wrong shape.
        InvalidMedia: A source is no data URI and no file in the folder. The error says nothing more about the file
            system.
    """
    conversation = normalise(messages)
    left = max_file_bytes
    for index, message in enumerate(conversation):
        if not isinstance(message["content"], str):
            for part_index, part in enumerate(message["content"]):
                if part["type"] != "text":
                    key = next(key for key in SOURCE_KEYS[part["type"]] if key in part)
                    name = f"messages[{index}].content[{part_index}].{key}"
                    part[key] = _read_source(part[key], key, name, folder, left)
                    left = max(left - len(part[key]), 0)
    return conversation


def count_media(messages: Sequence[Message]) -> int:
    """Return the number of images and videos in normalised messages."""
    parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
    return sum(part["type"] != "text" for part in parts)


def _read_source(value: Any, key: str, name: str, folder: Path | None, max_file_bytes: int) -> bytes:
    expected = "a data URI" if folder is None else "a data URI or a path in the folder of media"
    if not isinstance(value, str):
        raise InvalidMedia(name, expected, type(value).__name__)
    try:
        inline = inline_bytes(value, always=key == "base64")
    except ValueError as e:
        raise InvalidMedia(name, "a data URI or base64", e) from e
    if inline is not None:
        return inline
    if folder is None:
        raise InvalidMedia(name, expected, repr(value[:80]))
    try:
        path = (folder / value).resolve()
        inside = path.is_relative_to(folder.resolve()) and path.is_file()
        data_bytes = _read_file(path, folder.resolve(), max_file_bytes) if inside else None
    except (OSError, ValueError, RuntimeError):  # too long a name, a zero byte, links in a circle
        data_bytes = None
    if data_bytes is None:
        raise InvalidMedia(name, expected, repr(value[:80]))
    if len(data_bytes) > max_file_bytes:
        raise InvalidMedia(name, f"a file of at most {max_file_bytes} bytes", "a larger one")
    return data_bytes


def _read_file(path: Path, folder: Path, max_bytes: int) -> bytes:
    """Read a regular file in `folder` up to one byte past `max_bytes`. Raises OSError for anything else.

    Where the file lies is asked of the system once it is open: folders on the way may have been exchanged for links.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:
        opened = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if not opened.is_relative_to(folder) or not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, "no file of the folder", str(path))
        return file.read(max_bytes + 1)


def limit_media(preprocessor: Preprocessor, limits: MediaLimits, media_count: int, deadline: float) -> Preprocessor:
    """Return a preprocessor for one untrusted request, which divides its pixel limit among its images and videos.

    Args:
        preprocessor: The model's own.
        limits: What the request's media may amount to.
        media_count: The number of images and videos in the request.
        deadline: The time by `time.monotonic()` at which decoding a video is given up.
    """
    max_pixels = limits.max_pixels // max(media_count, 1)
    images = preprocessor.images
    videos = preprocessor.videos
    return replace(
        preprocessor,
        images=replace(
            images,
            max_source_pixels=min(images.max_source_pixels, limits.max_image_pixels, max_pixels),
            formats=IMAGE_FORMATS,
        ),
        videos=replace(
            videos,
            limits=DecodeLimits(
                max_source_pixels=min(videos.limits.max_source_pixels, max_pixels),
                max_source_frames=limits.max_frames,
                max_source_seconds=limits.max_seconds,
                max_sampled_pixels=max_pixels,
                deadline=deadline,
                decoders=UNTRUSTED_DECODERS,
            ),
        ),
    )
