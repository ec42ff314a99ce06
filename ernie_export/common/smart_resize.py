"""The size that an image or a video frame is resized to, from its own size and the bounds on its pixels.

Source: `smart_resize` (image_processing_pil_ernie4_5_vl_moe.py of transformers).
"""

import math

from ernie_export.common.processor_settings import PixelBounds

MAX_ASPECT_RATIO = 200  # the reference refuses longer images


def smart_resize(height: int, width: int, factor: int, bounds: PixelBounds) -> tuple[int, int]:
    """Return height and width in pixels after resizing: multiples of `factor` whose product lies within `bounds`.

    Both are rounded to the nearest multiple (`round` takes the even neighbour, as the reference does) and scaled where
    their product is out of bounds. A side is 0 where it rounds to nothing and the minimum is too small to grow it back.

    Args:
        height: Height before resizing, in pixels.
        width: Width before resizing, in pixels.
        factor: Pixels that one side of a merged patch has.
        bounds: Fewest and most pixels after resizing.
    """
    rows = round(height / factor)
    columns = round(width / factor)
    if rows * columns * factor**2 > bounds.maximum:
        beta = math.sqrt((height * width) / bounds.maximum)
        rows = max(1, math.floor(height / beta / factor))
        columns = max(1, math.floor(width / beta / factor))
    elif rows * columns * factor**2 < bounds.minimum:
        beta = math.sqrt(bounds.minimum / (height * width))
        rows = math.ceil(height * beta / factor)
        columns = math.ceil(width * beta / factor)
    return rows * factor, columns * factor
