"""Parse the sizes of images in a command-line option."""

import re

from ernie_export.common.errors import InvalidValue
from ernie_export.common.smart_resize import MAX_ASPECT_RATIO

_SIZE = re.compile(r"\s*([1-9][0-9]{0,5})[xX×]([1-9][0-9]{0,5})\s*")


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
