"""The sizes of images in command-line options: how large one may be, and those of a workload."""

import re
from collections.abc import Callable
from typing import TypeVar

import click

from ernie_export.common.errors import InvalidValue
from ernie_export.common.smart_resize import MAX_ASPECT_RATIO

# Pillow's default Image.MAX_IMAGE_PIXELS (256 MiB of RGB): past it Pillow warns of a decompression bomb. We refuse.
MAX_IMAGE_PIXELS = 89_478_485
Command = TypeVar("Command", bound=Callable[..., None])
_SIZE = re.compile(r"\s*([1-9][0-9]{0,5})[xX×]([1-9][0-9]{0,5})\s*")


def max_image_pixels_option(what: str) -> Callable[[Command], Command]:
    """Return the option that raises or lowers the limit on an image's pixels; `what` is the start of its help."""
    return click.option(
        "--max-image-pixels", type=click.IntRange(1), default=MAX_IMAGE_PIXELS, show_default=True, help=what
    )


def parse_image_sizes(images: str) -> tuple[tuple[int, int], ...]:
    """Return (width, height) in pixels of each image in an option `--images WIDTHxHEIGHT,...`; none for empty text.

    Raises InvalidValue for anything else, and for an aspect ratio that the image processor would refuse.
    """
    sizes = []
    for text in images.split(",") if images else []:
        match = _SIZE.fullmatch(text)
        if match is None:
            raise InvalidValue("--images", "WIDTHxHEIGHT,... in pixels", text[:80].strip() or "nothing")
        width = int(match[1])
        height = int(match[2])
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise InvalidValue("--images", f"an aspect ratio of at most {MAX_ASPECT_RATIO}", text.strip())
        sizes.append((width, height))
    return tuple(sizes)
